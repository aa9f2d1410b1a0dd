"""Reads a data set that has no indices, and perhaps no length, in order from any position."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from torch.utils.data._utils import worker

from conditioned_attention.experiments.training.chance import generators_kept, reseed

logger = logging.getLogger(__name__)

_END = object()


class StreamedItems(Dataset[Any]):
    """The items of a stream by their number since the beginning of the run, epoch after epoch.

    Before each item, all global generators are seeded by (seed, epoch, number in the epoch).  Every process that takes
    part in reading, be it a rank or a loader worker, reads the whole stream and keeps only what it was asked for, so
    that nothing depends on how many processes there are.

    A *place* says as plain data where the stream was before a batch.  A later process returns there by the data set's
    own ``state_dict`` if this leads to exactly the items of that batch, or else by reading the epoch from its start.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed = data, seed
        self.number = self.epoch = self.taken = 0  # of the next item: its number in the run, epoch, number in the epoch
        self.items: Iterator[Any] | None = None
        self.place: dict[str, Any] | None = None

    def start_at(self, place: dict[str, Any] | None) -> None:
        """Makes the next read begin at ``place``; None is the beginning of the run."""
        self.items, self.place = None, place

    def __getitems__(self, numbers: Sequence[int]) -> tuple[tuple[int, ...], dict[str, Any], list[Any]]:
        worker._worker_info = None  # otherwise a data set would return a worker's share alone
        with generators_kept():
            if self.items is None or numbers[0] < self.number:
                self._begin(numbers[0])
            self._take(numbers[0] - self.number)
            place: dict[str, Any] = {"number": self.number, "epoch": self.epoch, "taken": self.taken}
            state = self._state()
            items = self._take(len(numbers))
        if state is not None and (digest := _digest(items)) is not None:
            place |= {"state": state, "count": len(items), "digest": digest}
        return (place["epoch"], place["taken"]), place, items

    def _begin(self, number: int) -> None:
        place = self.place
        if place is None or place["number"] > number:
            self._open(0)
            self.number = 0
            return
        if "state" in place:
            try:
                self._open(place["epoch"], place["state"])
                self.number, self.taken = place["number"], place["taken"]
                if _digest(self._take(place["count"])) == place["digest"]:
                    return
                reason = "it gives other samples, as with a shuffle buffer, which the state does not include"
            except Exception as error:  # a data set that cannot be copied, a state of another version
                reason = f"{type(error).__name__}: {error}"
            logger.warning(
                "the saved state of the training stream does not restore its position (%s): the %d samples of this "
                "epoch are read again",
                reason,
                place["taken"],
            )
        self._open(place["epoch"])
        self.number = place["number"] - place["taken"]
        self._take(place["taken"])

    def _open(self, epoch: int, state: Any = None) -> None:
        self.source = self.data
        if state is not None:
            self.source = copy.deepcopy(self.data)  # the original would go to that state whenever it is iterated anew
            self.source.load_state_dict(state)
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)
        self.epoch, self.taken = epoch, 0
        reseed(self.seed, "stream", epoch)
        self.items = iter(self.source)

    def _take(self, count: int) -> list[Any]:
        """Returns the next items; when the stream ends, its next epoch begins."""
        found: list[Any] = []
        while len(found) < count:
            reseed(self.seed, self.epoch, self.taken)
            item = next(self.items, _END)  # type: ignore[arg-type]
            if item is not _END:
                found.append(item)
                self.taken += 1
                self.number += 1
            elif self.taken:
                self._open(self.epoch + 1)
            else:
                raise ValueError(f"the training stream is empty: epoch {self.epoch} has no item")
        return found

    def _state(self) -> Any:
        """Returns the data set's own state, if it has one that is plain data; None at the beginning of an epoch."""
        if not self.taken or not (hasattr(self.source, "state_dict") and hasattr(self.source, "load_state_dict")):
            return None
        state = self.source.state_dict()
        try:
            return state if json.loads(json.dumps(state)) == state else None
        except (TypeError, ValueError):
            return None


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Pickles a tensor as its bytes, since its own pickle holds its address."""
        if isinstance(obj, torch.Tensor):
            return bytes, (obj.flatten().view(torch.uint8).numpy().tobytes(),)
        return NotImplemented


def _digest(items: Sequence[Any]) -> str | None:
    """Returns a digest that is the same for the same items; None if they cannot be pickled."""
    file = io.BytesIO()
    try:
        for item in items:
            _Pickler(file).dump(item)  # one by one: what items share depends on where reading began
    except Exception:  # which exception it is depends on the classes of the items
        return None
    return hashlib.blake2b(file.getvalue(), digest_size=16).hexdigest()
