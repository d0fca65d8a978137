"""Rows of made tickets, and the words of a small `petl-bench choose` on them."""

from __future__ import annotations

import csv
import random

WORDS = {"refund": ["money back", "return the cash"], "card": ["card lost", "new card"], "login": ["cannot log in"]}
SMALL = ["data=tickets.csv", "backbone=tiny_bert", "train.epochs=2", "train.batch_size=32"]
METHODS = ["--methods", "lora,head"]


def write_tickets(file, rows=120, classes=tuple(WORDS), seed=0):
    draw = random.Random(seed)
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text", "queue"])
        for number in range(rows):
            label = draw.choice(classes)
            text = draw.choice(WORDS.get(label, [f"about {label}"]))
            writer.writerow([number, f"dear team {text} please {number}", label])
