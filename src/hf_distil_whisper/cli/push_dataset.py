"""`push-dataset`: publishes labelled rows on the Hub, with a card that says how they were made."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_distil_whisper.cli.config import InputError, parse_arguments, parse_yaml, setting
from hf_distil_whisper.cli.inputs import Plan
from hf_distil_whisper.hub.dataset_card import open_labelled, push_dataset


@dataclass
class PushDatasetArguments:
    """Flags of `push-dataset`; a single folder is a positional argument."""

    folder: list[str] | None = setting(None, "Output folder of pseudo-label or filter.")
    folders: dict[str, str] | str | None = setting(
        None, "Several folders, as configurations of one data set: {name: folder}."
    )
    repo_id: str | None = setting(None, "Repository: owner/name, or a name under your account.")
    teacher_model_name_or_path: str | None = setting(None, "Whisper that labelled, for the card.")
    language: str | None = setting(None, "ISO code of the speech, for the card.")
    licenses: dict[str, str] | str | None = setting(None, "Licence of the source, or of each: {name: licence}.")
    origins: dict[str, str] | str | None = setting(None, "Hub id or name of the source, or of each: {name: id}.")
    private: bool = setting(False, "Create a private repository; refuse a public one that exists.")
    embed_audio: bool = setting(True, "Publish the recordings with their labels.")
    dry_run: bool = setting(False, "Check the folders and print the plan only.")

    def __post_init__(self) -> None:
        for name in ("folders", "licenses", "origins"):
            setattr(self, name, _mapping(getattr(self, name), name))

    def labelled(self) -> dict[str, str] | str:
        """The folders by name, or the one."""
        if isinstance(self.folders, dict):
            return self.folders
        return (self.folder or [""])[0]


def _mapping(value: Any, flag: str) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        if flag == "folders" and isinstance(value, str):
            raise InputError(f"folders: expected {{name: folder}}, got {value!r}. One folder needs no flag.")
        return value
    mapping = parse_yaml(value)
    if not isinstance(mapping, dict) or not all(isinstance(part, str) for pair in mapping.items() for part in pair):
        raise InputError(f"{flag}: expected a mapping of names to texts, got {value!r}")
    return mapping


def plan_push_dataset(args: PushDatasetArguments) -> Plan:
    """Checks folders and name."""
    plan = Plan("push-dataset")
    plan.single_process()
    plan.repository(args.repo_id)
    folders = args.folder or []
    if bool(folders) == bool(args.folders) or len(folders) > 1:
        given = ", ".join(folders) or "none"
        plan.problems.append(f"expected one folder, or several by name in --folders, got {given} and {args.folders}")
        return plan
    labelled = args.labelled()
    rows, hours = 0, 0.0
    for name, folder in (labelled if isinstance(labelled, dict) else {labelled: labelled}).items():
        try:
            source = open_labelled(folder, name)
        except (FileNotFoundError, ValueError) as error:
            plan.problems.append(str(error))
            continue
        rows, hours = rows + source.published[0], hours + source.published[1]
    visibility = "private" if args.private else "public, unless it exists and is private"
    plan.figures["labelled"] = f"{rows:,} rows, {hours:.2f} h, {'with' if args.embed_audio else 'without'} recordings"
    plan.steps.append(f"push {rows:,} rows with a card to {args.repo_id} ({visibility})")
    return plan


def run(argv: Sequence[str]) -> None:
    """Entry point of the command."""
    command = "hf-distil-whisper push-dataset"
    (args,) = parse_arguments(PushDatasetArguments, argv=argv, command=command, words_to="folder")
    if plan_push_dataset(args).report(dry_run=args.dry_run):
        commit = push_dataset(
            args.labelled(),
            str(args.repo_id),
            teacher=args.teacher_model_name_or_path,
            private=args.private or None,
            language=args.language,
            licenses=args.licenses,
            origins=args.origins,
            embed_audio=args.embed_audio,
        )
        sys.stdout.write(f"{commit.commit_url}\n")
