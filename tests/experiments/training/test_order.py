"""Batches depend on the seed and the position alone: not on workers, ranks, or where a run was resumed."""

import inspect
import itertools
import random
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import Dataset, IterableDataset, Subset, get_worker_info

from conditioned_attention.experiments.training import order
from conditioned_attention.experiments.training.batches import training_batches
from conditioned_attention.experiments.training.chance import reseed, seeded
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.order import SampleOrder, permutation
from conditioned_attention.experiments.training.settings import Batch, Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.tiny import ShakenDigits

SAMPLES, BATCH = 23, 6  # three steps of two micro-batches an epoch, where five samples are left out


def shaken(value):
    """An item with chance from all three global generators."""
    noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
    return torch.tensor([float(value), noise])


class Shaken(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return shaken(index)


class Stream(IterableDataset):
    """Of another length and content in every epoch; ``drawn`` counts what was taken from it."""

    def __init__(self):
        self.epoch = self.drawn = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for i in range(SAMPLES - self.epoch):
            self.drawn += 1
            yield shaken(100 * self.epoch + i)


class WithState(Stream):
    def __init__(self):
        super().__init__()
        self.start = self.next = 0

    def __iter__(self):
        start, self.start = self.start, 0
        for i in range(start, SAMPLES - self.epoch):
            self.drawn, self.next = self.drawn + 1, i + 1
            yield shaken(100 * self.epoch + i)

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.start = state["next"]


class Sharded(Stream):
    """Hands each worker a share, as many data sets do."""

    def __iter__(self):
        info = get_worker_info()
        yield from itertools.islice(super().__iter__(), info.id if info else 0, None, info.num_workers if info else 1)


def collate(items):
    return torch.stack(items) + torch.rand(())


def batches(data=None, kind="shuffled", **changes):
    size, micro = changes.pop("batch_size", BATCH), changes.pop("micro_batch", 3)
    data = data or (Stream() if kind == "streamed" else Shaken())
    batch = Batch(batch_size=size, accumulation=size // micro, order=kind)
    return training_batches(data, batch, **{"seed": 3, "collate": collate, **changes})


def some(found, count=24):
    return torch.cat(list(itertools.islice(found, count)))


def values(found):
    """What the items were without their chance, and that of the batch."""
    return found[:, 0].floor().int().tolist()


ALL = {
    "shuffled": (Shaken, "shuffled"),
    "repeated": (Shaken, "repeated"),
    "stored": (Shaken, "stored"),
    "streamed": (Stream, "streamed"),
    "streamed, with a state": (WithState, "streamed"),
    "streamed, sharding itself": (Sharded, "streamed"),
}
IN_WORKERS = {"repeated", "streamed, sharding itself"}  # processes take a second to start


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("case", "workers"),
    [
        pytest.param(case, workers, marks=pytest.mark.slow if workers and case not in IN_WORKERS else ())
        for case in ALL
        for workers in (0, 2)
    ],
)
def test_resumed_anywhere_it_goes_on_to_the_bit(case, workers):
    data, kind = ALL[case]
    whole = batches(data(), kind)
    expected, places = some(whole), {}
    again = batches(data(), kind, workers=workers)
    for step in range(12):  # four epochs
        places[step] = step * BATCH, again.place
        assert torch.equal(some(again, 2), expected[step * BATCH : (step + 1) * BATCH])
    for step in (1, 3, 4, 11):
        resumed = batches(data(), kind, workers=workers)
        resumed.start_at(*places[step])
        assert torch.equal(some(resumed, 24 - 2 * step), expected[step * BATCH :])
    resumed.start_at(0)
    assert torch.equal(some(resumed, 4), expected[: 2 * BATCH]), "data that are shared begin anew"


@pytest.mark.parametrize("case", ALL)
def test_processes_get_the_parts_of_what_one_would_get(case):
    data, kind = ALL[case]
    whole = some(batches(data(), kind, collate=torch.stack), 12)
    parts = []
    for rank in range(3):
        found = batches(data(), kind, collate=torch.stack)
        found.loader = prepare_data_loader(found.loader, num_processes=3, process_index=rank, split_batches=True)
        found.start_at(BATCH)
        parts.append(torch.stack(list(itertools.islice(found, 10))))
    assert torch.equal(torch.cat(parts, 1).flatten(0, 1), whole[BATCH:])


def test_chance_is_set_by_the_key_and_leaves_the_generators_alone():
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with seeded(1, 2):
        first = shaken(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    reseed(1, 2)
    assert torch.equal(shaken(0), first)


class Flow(IterableDataset):
    drawn = 0

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        for i in range(len(self)):
            Flow.drawn += 1
            yield self.data[i]


class Streamed(ShakenDigits):
    def train_data(self):
        return Flow(super().train_data())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["repeated", "stored", "streamed"])
def test_a_run_in_any_order_goes_on_to_the_bit(kind, tmp_path):
    task = Streamed() if kind == "streamed" else ShakenDigits()
    settings = Training(
        epochs=3, batch_size=60, accumulation=2, order=kind, max_steps=8, evaluate_steps=2, monitor_every=0
    )

    def rows(folder):
        return train(task, settings, VARIANTS["baseline"], 0, folder, Launch(checkpoint_seconds=1e6))

    whole = [(row["train_loss"], row["score"]) for row in rows(tmp_path / "whole")]
    assert len(whole) == 4
    for stop in range(1, 4):  # stopped at steps 2, 4 and 6; an epoch has three
        going = rows(tmp_path / "broken")
        found = list(itertools.islice(going, stop))
        going.close()
        assert [(row["train_loss"], row["score"]) for row in found] == whole[:stop]
    Flow.drawn = 0
    assert [(row["train_loss"], row["score"]) for row in rows(tmp_path / "broken")] == whole
    assert Flow.drawn < 360, "of 510: not the epochs before the one that it was in"


# Orders


def test_shuffled_is_a_new_permutation_each_epoch_and_whole_batches_only():
    epoch = [order.torch.randperm(10, generator=torch.Generator().manual_seed(3 * 1_000_003 + e)) for e in range(2)]
    keys = SampleOrder("shuffled", 10, seed=3, used=8).keys
    assert list(itertools.islice(keys(), 16)) == [(e, i) for e in range(2) for i in epoch[e][:8].tolist()]
    assert list(itertools.islice(keys(11), 5)) == [(1, i) for i in epoch[1][3:8].tolist()]


def test_stored_is_the_data_sets_own_order():
    assert values(some(batches(kind="stored", collate=torch.stack), 9)) == [*range(18), *range(9)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_repeated_is_the_one_of_timm(ranks):
    """With seed 0, which is timm's: the same samples in the same order, as all of its ranks together take them."""
    from timm.data.distributed_sampler import RepeatAugSampler

    theirs = [RepeatAugSampler(range(1000), num_replicas=ranks, rank=rank) for rank in range(ranks)]
    used = sum(map(len, theirs))
    ours = list(itertools.islice(SampleOrder("repeated", 1000, seed=0, used=used).keys(), 3 * used))
    assert used == 1000 // 256 * 256 == 768
    for epoch in range(3):
        for sampler in theirs:
            sampler.set_epoch(epoch)
        together = [index for step in zip(*theirs, strict=True) for index in step]
        assert [index for e, index, _ in ours if e == epoch] == together
        assert len(set(together)) == 768 / 3
    assert len(set(ours)) == 3 * 768, "every copy has its own chance"


def test_an_epoch_of_imagenet_is_as_long_as_timms():
    from timm.data.distributed_sampler import RepeatAugSampler

    images = range(1_281_167)
    keys = batches(images, "repeated", batch_size=1024, micro_batch=1024).loader.sampler.of
    assert (
        inspect.getclosurevars(keys).nonlocals["order"].used
        == 16 * len(RepeatAugSampler(images, num_replicas=16, rank=0))
        == 1_281_024
    )


def test_every_copy_has_its_own_augmentation():
    found = some(batches(kind="repeated", collate=torch.stack), 6)
    assert len(found[:, 0].unique()) == 6
    assert len(found[:, 1].unique()) == 18


LARGE = 3 * order.IN_MEMORY + 7


@pytest.mark.slow
def test_a_large_permutation_is_one():
    found = permutation(LARGE, 0, 0)(np.arange(LARGE))
    assert np.array_equal(np.bincount(found), np.ones(LARGE))
    assert np.array_equal(permutation(LARGE, 0, 0)(np.arange(1000, 1010)), found[1000:1010])


def test_a_permutation_that_is_not_kept_in_memory_is_one():
    for length in (order.IN_MEMORY + 1, 1025**2, 1025**2 + 1):  # a rectangle that is full, and one almost empty row
        assert np.array_equal(np.sort(permutation(length, 1, 2)(np.arange(length))), np.arange(length))


def test_a_large_permutation_has_no_structure_to_be_seen():
    count = 2**18
    found = [permutation(LARGE, *key)(np.arange(count)) for key in ((0, 0), (0, 1), (1, 0), (2**40, 5))]

    def surprise(observed):  # of a count that should be uniform, in standard deviations of its chi-square
        expected = observed.sum() / observed.size
        return (((observed - expected) ** 2).sum() / expected - observed.size) / (2 * observed.size) ** 0.5

    for one in found:
        assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 4.5 / count**0.5, "neighbours"
        assert abs(np.corrcoef(one, np.arange(count))[0, 1]) < 4.5 / count**0.5, "position"
        table = np.arange(count) * 32 // count * 32 + one * 32 // LARGE
        assert abs(surprise(np.bincount(table, minlength=1024))) < 4.5
        assert abs(surprise(np.bincount(np.diff(one) % LARGE * 256 // LARGE, minlength=256))) < 4.5, "steps"
        assert abs(surprise(np.bincount(one[:-1] % 8 * 8 + one[1:] % 8, minlength=64))) < 4.5, "lowest bits"
    for a, b in itertools.combinations(found, 2):
        assert (a == b).sum() < 10
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / count**0.5


@pytest.mark.slow
def test_a_large_data_set_needs_no_memory():
    """8.5 million samples took 0.9 GiB as a list of tuples."""
    tracemalloc.start()
    try:
        for kind in ("shuffled", "repeated", "stored"):
            assert sum(1 for _ in itertools.islice(SampleOrder(kind, 8_500_000, 0, 8_500_000).keys(8_400_000), 200_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * 2**20


def test_a_subset_hands_out_items_one_by_one():
    """PyTorch's has __getitems__, and so passed for one whose batches know no chance."""
    plain = some(batches(Shaken()), 12)
    torch.manual_seed(5)
    assert torch.equal(some(batches(Subset(Subset(Shaken(), range(SAMPLES)), range(SAMPLES))), 12), plain)


def test_chance_in_whole_batches_is_set_too():
    class InBatches(Shaken):
        def __getitems__(self, indices):
            return [shaken(index) for index in indices]

    first = some(batches(InBatches()), 12)
    torch.manual_seed(5)
    resumed = batches(InBatches(), workers=2)
    resumed.start_at(2 * BATCH)
    assert torch.equal(some(resumed, 8), first[2 * BATCH :])


# Streams


def test_a_stream_goes_from_epoch_to_epoch_within_a_batch():
    found = values(some(batches(kind="streamed", collate=torch.stack), 16))
    assert found == [*range(23), *range(100, 122), 200, 201, 202]


def test_the_state_of_a_stream_saves_reading_it_again():
    going, data = batches(WithState(), "streamed", micro_batch=6), WithState()
    some(going, 2)
    place = going.place
    digest = place["digest"]
    assert place == {"number": 6, "epoch": 0, "taken": 6, "state": {"next": 6}, "count": 6, "digest": digest}
    resumed = batches(data, "streamed", micro_batch=6)
    resumed.start_at(12, place)
    assert torch.equal(some(resumed, 1), some(going, 1))
    assert resumed._items.source.drawn == 12, "of 18; the first six of them to see that they are the same"
    assert (data.drawn, data.start) == (0, 0), "a later run may iterate over it from the beginning"


class Forgetful(WithState):
    def state_dict(self):
        return {"next": self.next - 1}


class Moved(WithState):
    def load_state_dict(self, state):
        raise KeyError("shard")


class Open(WithState):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (Forgetful, "it gives other samples"),
        (Moved, "KeyError: 'shard'"),
        (Open, "TypeError: cannot pickle '_thread.lock'"),
    ],
)
def test_a_state_that_does_not_lead_back_is_not_trusted(caplog, data, reason):
    going, resumed = batches(data(), "streamed"), batches(data(), "streamed")
    some(going, 6)
    resumed.start_at(18, going.place)
    assert torch.equal(some(resumed, 3), some(going, 3))
    assert f"does not restore its position ({reason}" in caplog.text


@pytest.mark.parametrize("items", [lambda i: lambda: i, lambda i: {i}])
def test_a_state_that_cannot_be_checked_or_kept_is_not_used(items):
    class Odd(WithState):
        def __iter__(self):
            return map(items, range(23))

        def state_dict(self):
            return {"seen": (1, 2)} if isinstance(items(0), set) else {"seen": 1}

    going = batches(Odd(), "streamed", collate=len)
    list(itertools.islice(going, 3))
    assert going.place == {"number": 6, "epoch": 0, "taken": 6}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("buffer", [0, 8])
def test_streams_of_datasets(tmp_path, buffer, workers, caplog):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": range(40)})

    def make(**changes):
        data = rows.to_iterable_dataset(num_shards=4)
        data = data.shuffle(seed=1, buffer_size=buffer) if buffer else data
        data = data.map(lambda row: {"y": row["x"] + random.random()})
        return batches(
            data, "streamed", collate=lambda items: torch.tensor([[i["x"], i["y"]] for i in items]), **changes
        )

    expected = some(make(), 40)
    assert sorted(values(expected)[:40]) == list(range(40))
    assert (values(expected)[40:80] == values(expected)[:40]) == (buffer == 0), "set_epoch reaches the shuffling"
    going = make(workers=workers)
    for step in range(15):
        if step in (2, 9):
            resumed = make()
            resumed.start_at(step * BATCH, going.place)
            assert torch.equal(some(resumed, 40 - 2 * step), expected[step * BATCH :])
        assert torch.equal(some(going, 2), expected[step * BATCH : (step + 1) * BATCH])
    assert ("does not restore its position" in caplog.text) == (buffer > 0)


def test_an_empty_stream_is_an_error():
    class Empty(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="the training stream is empty: epoch 0 has no item"):
        next(batches(Empty(), "streamed"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "streamed", "data": Shaken()}, "order='streamed' needs data to iterate over, and Shaken has no"),
        ({"data": Stream()}, "order='shuffled' needs data with a length and an index, and Stream lacks them"),
        ({"batch_size": 24}, "batch_size=24 leaves no batch of 23 samples"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        next(batches(**changes))


def pairs_with_chance(items):
    """What mixup does: first with last, second with last but one, and a number for the whole batch."""
    found = torch.stack(items)
    return torch.cat((found + 100 * found.flip(0), torch.full((len(found), 1), np.random.rand())), dim=1)  # noqa: NPY002


@pytest.mark.parametrize("kind", ["shuffled", "repeated"])
def test_pairs_are_mixed_alike_on_any_number_of_processes(kind):
    def mixed(rank=0, ranks=1, **pairs):
        found = batches(kind=kind, micro_batch=BATCH, collate=pairs_with_chance, **pairs)
        found.loader = prepare_data_loader(
            found.loader, num_processes=ranks, process_index=rank, split_batches=True, put_on_device=False
        )
        return list(itertools.islice(found, 5))  # into the second epoch

    whole = mixed(pairs=True)
    assert all(torch.equal(one, two) for one, two in zip(whole, mixed())), "the batches of one process stay"
    shares = zip(*(mixed(rank, 3, pairs=True) for rank in range(3)))
    for batch, parts in zip(whole, shares):
        for i, part in enumerate(parts):
            assert torch.equal(part, batch[[i, BATCH - 1 - i]])
