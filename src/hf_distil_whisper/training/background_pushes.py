"""Pushes of a training to the Hub, one after another in a thread of their own, from copies that no step can change.

Knows when to push, wait, try again and give up; `uploads` knows how to push, `pushing` what.
"""

import logging
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo

from hf_distil_whisper.uploads import (
    Repository,
    by_hand,
    folder_files,
    push_files,
    reason,
    try_to_push,
)

logger = logging.getLogger(__name__)

_CLIENTS_LOGGERS = ("huggingface_hub.utils._http", "huggingface_hub.hf_api")
_LONGEST_END = 60.0
"""Seconds that a finished training waits for a Hub that asks for patience; after that the push is left to the user."""


@dataclass(frozen=True)
class Snapshot:
    """Files as they are to stand in the repository.

    Args:
        folder (`Path`): all of it goes up; removed afterwards.
        message (`str`): of the commit.
        source (`Path`): where the same student lies for good, for `push` by hand.
        best (`bool`): the best model so far.
    """

    folder: Path
    message: str
    source: Path
    best: bool = False


class BackgroundPushes:
    """Takes snapshots and pushes them, the newest first where several wait, but none that is the best so far.

    So at most four copies lie on the disk: one under way, the newest, the best, and one that failed. The thread lives
    as long as something waits. A program that ends meanwhile finishes the push under way, without further tries.

    Args:
        to ([`Repository`]): where to.
        keep_all (`bool`, *optional*, defaults to `False`): push every snapshot, in order.
    """

    def __init__(self, to: Repository, keep_all: bool = False) -> None:
        self.to, self.keep_all = to, keep_all
        self.error: str | None = None
        self.commit: CommitInfo | None = None
        self._warned = False
        self._failed: Snapshot | None = None
        self._waiting: list[Snapshot] = []
        self._thread: threading.Thread | None = None
        self._ending = False
        self._changed = threading.Condition()

    @property
    def busy(self) -> bool:
        """Whether a push is under way or waits."""
        return self._thread is not None

    def submit(self, snapshot: Snapshot) -> None:
        """Hands a snapshot over and returns at once."""
        with self._changed:
            if not self.keep_all:
                for old in [old for old in self._waiting if snapshot.best or not old.best]:
                    self._waiting.remove(old)
                    shutil.rmtree(old.folder, ignore_errors=True)
            self._waiting.append(snapshot)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="push-to-hub")
                self._thread.start()
            self._changed.notify_all()

    def finish(self) -> bool:
        """Waits for all pushes, tries once more what has failed, and says whether everything is on the Hub."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._join()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            self.submit(failed)
            self._join()
        self._ending = False
        if self._failed is not None:
            logger.warning(
                f"Not on the Hub: {self._failed.source} ({self.error}). The training itself is complete. Push it by "
                f"hand: {by_hand(self._failed.source, self.to)}"
            )
            self._discard()
        return self.error is None

    def _discard(self) -> None:
        """Forgets a copy that could not be pushed."""
        if self._failed is not None:
            shutil.rmtree(self._failed.folder, ignore_errors=True)
            self._failed = None

    def _join(self) -> None:
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                snapshot = self._waiting.pop(0)
            self._push(snapshot)

    def _push(self, snapshot: Snapshot) -> None:
        last = None if self.commit is None else self.commit.oid

        def push() -> CommitInfo:
            files = folder_files(snapshot.folder)
            return push_files(self.to, files, snapshot.message, best=snapshot.best, last=last)

        def pause(seconds: float, error: BaseException) -> bool:
            self._report(error)
            with self._changed:
                if not threading.main_thread().is_alive():
                    return False
                return not self._changed.wait_for(lambda: self._is_pointless(snapshot, seconds), seconds)

        try:
            with _quiet_retries():
                self.commit = try_to_push(push, pause)
        except Exception as error:  # whatever the network does, the training goes on
            self._report(error)
            self._discard()
            self._failed = snapshot
            return
        if self._warned:
            logger.info(f"{self.to.repo_id}: pushing again ({snapshot.message})")
        self.error, self._warned = None, False
        self._discard()
        shutil.rmtree(snapshot.folder, ignore_errors=True)

    def _is_pointless(self, snapshot: Snapshot, seconds: float) -> bool:
        """Whether a newer one waits, so that this one need not be tried again, or the training waits for too long."""
        newer = any(other.best or not snapshot.best for other in self._waiting)
        return (newer and not self.keep_all) or (self._ending and seconds > _LONGEST_END)

    def _report(self, error: BaseException) -> None:
        """Keeps the reason; warns once, until a push succeeds again."""
        self.error = reason(error, self.to.token)
        if not self._warned:
            self._warned = True
            logger.warning(
                f"The push to {self.to.repo_id} failed ({self.error}). The training goes on; it is tried again, with "
                "the next checkpoint and at the end."
            )


class _quiet_retries(logging.Filter):
    """The client reports each of its own tries; in the background one warning says it for all."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread == threading.main_thread().ident

    def __enter__(self) -> None:
        for name in _CLIENTS_LOGGERS:
            logging.getLogger(name).addFilter(self)

    def __exit__(self, *_: object) -> None:
        for name in _CLIENTS_LOGGERS:
            logging.getLogger(name).removeFilter(self)
