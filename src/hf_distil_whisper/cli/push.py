"""`push`: pushes the student in a folder to the Hub, complete and with its card."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hf_distil_whisper.cli.config import parse_arguments, setting
from hf_distil_whisper.cli.inputs import Plan
from hf_distil_whisper.hub.model_card import push_student
from hf_distil_whisper.hub.push import check_folder, missing_files, student_files


@dataclass
class PushArguments:
    """Flags of `push`; the folder is a positional argument."""

    folder: list[str] | None = setting(None, "Folder of the student; also without the flag.")
    repo_id: str | None = setting(None, "Repository: owner/name, or a name under your account.")
    private: bool = setting(False, "Create a private repository; refuse a public one that exists.")
    revision: str | None = setting(None, "Branch, created if it does not exist; by default main.")
    dry_run: bool = setting(False, "Check the folder and print the plan only.")


def plan_push(args: PushArguments) -> Plan:
    """Checks the folder and the name."""
    plan = Plan("push")
    plan.single_process()
    plan.repository(args.repo_id)
    if len(args.folder or []) != 1:
        plan.problems.append(f"expected one folder, got {', '.join(args.folder or []) or 'none'}")
        return plan
    (folder,) = args.folder or []
    try:
        check_folder(folder)
    except FileNotFoundError as error:
        plan.problems.append(str(error))
        return plan
    for name in missing_files(folder):
        plan.steps.append(f"add {name}")
    visibility = "private" * args.private or "public, unless it exists and is private"
    plan.steps.append(f"push {len(student_files(folder))} files of {folder} to {args.repo_id} ({visibility})")
    return plan


def run(argv: Sequence[str]) -> None:
    """Entry point of the command."""
    (args,) = parse_arguments(PushArguments, argv=argv, command="hf-distil-whisper push", words_to="folder")
    if plan_push(args).report(dry_run=args.dry_run):
        (folder,) = args.folder or []
        commit = push_student(folder, str(args.repo_id), private=args.private or None, revision=args.revision)
        sys.stdout.write(f"{commit.commit_url}\n")
