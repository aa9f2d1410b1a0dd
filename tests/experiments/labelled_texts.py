"""GLUE's folders as released, tiny, of sentences whose label is a word in them; and a tiny pretrained model."""

from transformers import BertConfig, BertForMaskedLM

from conditioned_attention.experiments.data.text.glue import GLUE
from conditioned_attention.experiments.data.text.wordpiece import for_classifiers, train_wordpiece

WORDS = ("dull", "fine", "odd")
HEADERS = {
    "mnli": [*"abcdefgh", "sentence1", "sentence2", "label1", "gold_label"],
    "mrpc": ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "qnli": ["index", "question", "sentence", "label"],
    "qqp": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "rte": ["index", "sentence1", "sentence2", "label"],
    "sst2": ["sentence", "label"],
    "stsb": ["index", "genre", "sentence1", "sentence2", "score"],
}


def sentence(i, label):
    return f"the {('cat', 'dog', 'sea', 'sun')[i % 4]} number {i} is {WORDS[label]} today"


def row(name, header, i):
    """One line of a task's file, with a quote that never ends."""
    task = GLUE[name]
    label = i % (len(task.classes) or 3)
    cells = dict.fromkeys(header, f"x{i}") | dict(
        zip(task.texts, ['"the first', sentence(i, label)][-len(task.texts) :])
    )
    cells |= {task.label: task.classes[label] if task.classes else f"{label * 2.5:.3f}"}
    return "\t".join(cells[column] for column in header)


def write_glue(folder, names=tuple(GLUE), train=40, dev=20):
    for name in names:
        task, shown = GLUE[name], HEADERS.get(name)
        header = [column.lstrip("\ufeff") for column in shown or task.header]
        place = folder / task.folder
        place.mkdir(parents=True, exist_ok=True)
        for part, first, count in (
            ("train", 0, train),
            *((f"dev{ending}", train + dev * k, dev) for k, ending in enumerate(task.held)),
        ):
            lines = [row(name, header, i) for i in range(first, first + count)]
            (place / f"{part}.tsv").write_text("\n".join([*(["\t".join(shown)] if shown else []), *lines, ""]))


def tokenizer():
    return train_wordpiece([sentence(i, i % 3) + ' " the first' for i in range(60)], 300)


def write_bert(folder, wrap=lambda model: model):
    """A BERT of one layer with fresh weights and its tokenizer, as ``save_pretrained`` leaves them."""
    made = for_classifiers(tokenizer())
    config = BertConfig(
        vocab_size=len(made), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, initializer_range=0.1,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    wrap(model)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def write_rated(folder, texts=60):
    """Ratings as in vaderSentiment's files, of two sentences an article."""
    folder.mkdir()
    for name in ("movieReviewSnippets", "nytEditorialSnippets"):
        lines = [f"{i // 2}_{i % 2}\t{i % 3 - 1}.5\t{sentence(i, i % 3)}\r" for i in range(texts)]
        (folder / f"{name}_GroundTruth.txt").write_bytes("\n".join(lines).encode())
    return folder


NOUNS = """  1 This software and database is being provided
00000010 03 n 01 entity 0 001 ~ 00000020 n 0000 | that which is; "it is"
00000020 03 n 02 living_thing 0 animate 0 002 ~ 00000030 n 0000 @ 00000010 n 0000 | a living entity
00000030 05 n 01 dog 0 001 @ 00000020 n 0000 | barks; "the dog barked"
00000040 05 n 01 cat 0 001 @ 00000020 n 0000 | purrs
00000050 18 n 01 Tom 0 001 @i 00000040 n 0000 | a famous cat
00000060 17 n 01 stone 0 001 @ 00000010 n 0000 | it lies there
00000070 17 n 01 granite 0 001 @ 00000060 n 0000 | a hard stone
00000080 17 n 01 marble 0 001 @ 00000060 n 0000 | a white stone
"""


def write_nouns(folder):
    folder.mkdir()
    (folder / "data.noun").write_text(NOUNS)
    return folder
