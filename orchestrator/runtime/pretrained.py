"""`<storage>/pretrained/<digest>`: an adapted backbone with how it came to be.

    config.json, tokenizer.json, model.safetensors …   of a text encoder, in the hub's format
    model.safetensors                                   of an image backbone
    pretraining.json                                    settings, corpus, parent, measures, digests

The folder appears at once and is never changed; at a URI, `pretraining.json` appears last. While
it is made, `.<digest>` beside it holds the checkpoints and a lock, so that two sweeps that want the
same pretraining share it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import IntegrityError
from orchestrator.runtime.lease import leased
from orchestrator.spec import mirror
from orchestrator.spec.durable import file_digest, sync_file, sync_folder, write_json
from orchestrator.spec.parts import BackboneSpec
from orchestrator.spec.pretrained import PROVENANCE, pretrained_folder
from orchestrator.spec.pretraining import DIGITS

WEIGHTS = "model.safetensors"
POLL_S = 2.0


class PretrainedFolder:
    """The folder of one pretraining by its digest."""

    def __init__(self, storage: Path, digest: str) -> None:
        self.digest = digest
        self.root = storage / "pretrained" / digest[:DIGITS]
        self._work = self.root.with_name(f".{self.root.name}")

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie while it is made."""
        return self._work / "checkpoints"

    def provenance(self) -> dict[str, Any] | None:
        """What `pretraining.json` says, or None while the pretraining has not ended.

        Raises:
            IntegrityError: The folder is another pretraining's, or a file of it has changed.
        """
        pretrained_folder(mirror.location_of(self.root))
        try:
            content: dict[str, Any] = json.loads((self.root / PROVENANCE).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as err:
            raise self._damaged(f"{PROVENANCE} cannot be read ({err})") from err
        if content.get("digest") != self.digest:
            raise self._damaged("it is of another pretraining")
        for name, digest in content["files"].items():
            path = self.root / name
            if not path.is_file() or file_digest(path) != digest:
                raise self._damaged(f"{name} is not what was written")
        return content

    def adapted(self, parent: BackboneSpec) -> BackboneSpec:
        """The adapted backbone as experiments name it: the parent's name, these weights."""
        if (self.root / "config.json").exists():
            return BackboneSpec(name=parent.name, folder=mirror.location_of(self.root))
        return BackboneSpec(name=parent.name, weights=mirror.location_of(self.root / WEIGHTS))

    def publish(self, fill: Callable[[Path], None], provenance: dict[str, Any]) -> None:
        """Make the folder appear with what `fill` writes and the provenance; end the work."""
        partial = self._work / f"{uuid.uuid4().hex[:12]}.partial"
        partial.mkdir(parents=True)
        fill(partial)
        files = sorted(path.name for path in partial.iterdir())
        for name in files:
            sync_file(partial / name)
        digests = {name: file_digest(partial / name) for name in files}
        write_json(partial / PROVENANCE, {**provenance, "digest": self.digest, "files": digests})
        sync_folder(partial)
        mirror.put_folder(partial, self.root, last=PROVENANCE)
        partial.rename(self.root)
        sync_folder(self.root.parent)
        if mirror.at_uri(self.root) is not None:  # whoever clears the work may be on another node
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the work against other processes; wait for one that has it.

        Args:
            waiting: Called once if it has to be waited for.
        """
        self._work.mkdir(parents=True, exist_ok=True)
        with (self._work / ".lock").open("a") as file:
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if not told:
                        waiting()
                        told = True
                    time.sleep(POLL_S)
            with leased(self._work, waiting=waiting):
                yield

    def clear_work(self) -> None:
        """Remove the checkpoints of a pretraining that has ended."""
        mirror.remove_folder(self._work)

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"{mirror.location_of(self.root)}: {what}. Delete the folder, and the same command "
            "pretrains again"
        )
