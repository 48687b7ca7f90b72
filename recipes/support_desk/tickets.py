"""Write a folder of made-up support tickets, one Markdown file each: a shop that sells kettles.

    python recipes/support_desk/tickets.py FOLDER [--count 300] [--seed 0]

Every ticket names a product, an order and a wish; the reply follows the shop's rules, which no
model knows beforehand. Names, numbers and addresses are invented.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

PRODUCTS = ("kettle", "lamp", "clock", "toaster", "scale", "fan")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo")

WISHES = {
    "returns": (
        "I want to send my {product} back. It is too big for me.",
        "The {product} is not what I wanted. Can I return it?",
        "Please take the {product} back. I have not used it.",
        "How do I return a {product}? I do not need it.",
    ),
    "delivery": (
        "My {product} did not come. Where is it?",
        "When will my {product} arrive? I have waited for a week.",
        "The box with the {product} is late.",
        "I still wait for the {product}. Has it been sent?",
    ),
    "repair": (
        "My {product} does not work any more.",
        "The {product} is broken. It makes a loud noise.",
        "The {product} stopped after two days. Can you fix it?",
        "There is a fault in my {product}. It does not turn on.",
    ),
    "billing": (
        "You took the money for the {product} two times.",
        "The price of the {product} on my bill is wrong.",
        "I need a new bill for the {product} with my name on it.",
        "I paid for a {product} and the bill says I did not.",
    ),
}
REPLIES = {
    "returns": "Please send the {product} to desk 4 within 40 days. We pay order {order} back.",
    "delivery": "Order {order} is on its way. The {product} comes within 3 days.",
    "repair": "Please bring the {product} to desk 7. We fix order {order} in 5 days for free.",
    "billing": "Desk 2 will check the bill of order {order} for the {product} within 1 day.",
}


def ticket(random_: random.Random) -> str:
    """One ticket: headers, what the customer wrote, and what was answered."""
    queue = random_.choice(sorted(WISHES))
    product, order = random_.choice(PRODUCTS), random_.randint(100, 999)
    name = random_.choice(NAMES)
    wish = random_.choice(WISHES[queue]).format(product=product)
    reply = REPLIES[queue].format(product=product, order=order)
    where = random_.choice(
        (
            f"Order {order}.",
            f"My order is {order}.",
            f"Order {order}, mail {name.lower()}@mail.test.",
        )
    )
    return f"queue: {queue}\n\n## Customer\n\n{wish} {where} {name}\n\n## Reply\n\n{reply}\n"


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    drawn = random.Random(arguments.seed)
    for number in range(arguments.count):
        path = arguments.folder / f"{number:05}.md"
        path.write_text(ticket(drawn), encoding="utf-8")
    print(f"{arguments.count} tickets in {arguments.folder}")


if __name__ == "__main__":
    main()
