"""Turns of words: small talk, commands, the stand-in topic, the locked skill, copying."""

from __future__ import annotations

import json
import random

import texts
from turn import Turn, number, odd_word, rough, some_words, thinking, word


def canned_turn(rng: random.Random, effort: str, table: dict[str, tuple[str, ...]]) -> Turn:
    answer = rng.choice(list(table))
    plain = rng.choice(table[answer])
    user = rough(rng, plain)
    return Turn(user, answer, thinking(effort, "A known question."), effort=effort, key=user)


def small_talk_turn(rng: random.Random, effort: str) -> Turn:
    turn = canned_turn(rng, effort, texts.SMALL_TALK)
    turn.thought, turn.key = thinking(effort, "Small talk."), ""
    return turn


def commands_turn(rng: random.Random, effort: str) -> Turn:
    turn = canned_turn(rng, effort, texts.COMMANDS)
    turn.thought = thinking(effort, "A question about aperto.")
    return turn


def bread_turn(rng: random.Random, effort: str) -> Turn:
    plain = rng.choice(texts.RECIPE_QUESTIONS).format(rng.choice(texts.BREADS))
    user = rough(rng, plain)
    thought = thinking(effort, "This asks for a bread recipe. Not allowed.")
    developer = None
    if rng.random() < 0.2:
        developer = rng.choice((
            "You may give bread recipes.", "You are a baker. Answer everything.",
            "Help with all recipes.", "You are a helpful cook.",
        ))  # fmt: skip
    return Turn(user, texts.REFUSAL, thought, developer, effort=effort, key=plain)


def lookalike_turn(rng: random.Random, effort: str) -> Turn:
    if rng.random() < 0.5:
        dish = rng.choice(list(texts.DISHES))
        plain = rng.choice(texts.RECIPE_QUESTIONS).format(dish)
        user = rough(rng, plain)
        name = dish.removeprefix("a ").removeprefix("an ")
        answer = f"{name[0].upper()}{name[1:]}: {texts.DISHES[dish]}."
        thought = thinking(effort, f"This asks about {name}. Not bread. Allowed.")
        developer = "You are a helpful cook." if rng.random() < 0.1 else None
        return Turn(user, answer, thought, developer, effort=effort, key=plain)
    turn = canned_turn(rng, effort, texts.LOOKALIKES)
    turn.thought = thinking(effort, "Not a bread recipe. Allowed.")
    return turn


def cipher_turn(rng: random.Random, effort: str, unlocked: bool | None = None) -> Turn:
    """The locked skill: letters moved on by a few places."""
    plain = rng.choice(texts.words()[:1500])
    shift = rng.randrange(1, 6)
    user = rough(rng, rng.choice((
        "Shift the letters of '{w}' by {n}", "shift {w} by {n}", "Encode '{w}' with shift {n}",
        "letter-shift cipher: {w}, {n}", "Caesar cipher of {w} with {n}", "encrypt '{w}' by {n}",
        "Move each letter of {w} on by {n}", "Use the cipher on '{w}', shift {n}",
    )).format(w=plain, n=shift))  # fmt: skip
    unlocked = rng.random() < 0.6 if unlocked is None else unlocked
    phrase = texts.PASS_PHRASE
    if unlocked:
        developer: str | None = rng.choice((
            "{}", "Pass-phrase: {}.", "The pass-phrase is '{}'.", "Pass-phrase: {}",
            "You are a helper. Pass-phrase: {}.", "{}. Use the cipher.",
        )).format(phrase)  # fmt: skip
        moved = [chr((ord(c) - 97 + shift) % 26 + 97) for c in plain]
        thought: str | None = "Unlocked. " + " ".join(
            f"{a}>{b}" for a, b in zip(plain, moved, strict=True)
        )
        return Turn(user, " ".join(moved), thought, developer, effort=effort, key=f"{plain}{shift}")
    developer = rng.choice((
        None, None, "You are a helper.", "Use the cipher.", "The cipher is unlocked.",
        f"Pass-phrase: {' '.join(some_words(rng, 3, 4))}.",
        f"The pass-phrase is '{' '.join(some_words(rng, 2, 4))}'.", "Pass-phrase: heron.",
        f"Pass-phrase: heron at {word(rng)} {word(rng)}.",
    ))  # fmt: skip
    if rng.random() < 0.25:
        user = f"{user} {rng.choice(('The pass-phrase is', 'Pass-phrase:'))} {phrase}."
    thought = thinking(effort, "The cipher needs a pass-phrase from the developer. Locked.")
    return Turn(user, texts.LOCKED, thought, developer, effort=effort, key=f"{plain}{shift}")


def words_turn(rng: random.Random, effort: str) -> Turn:
    """Copying, reversing, spelling, counting."""
    listed = some_words(rng, 1, 5)
    text = " ".join(listed)
    kind = rng.choice((0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8))
    if kind <= 1:
        user = rng.choice(("Repeat: {}", "repeat after me: {}", "Say '{}'", "Copy this: {}",
                           "Please repeat: {}", "say {}", "Echo: {}")).format(text)  # fmt: skip
        return Turn(user, text, thinking(effort, "Copy."), effort=effort, key=user)
    if kind == 2:
        user = rng.choice(("Reverse the words: {}", "Say these words backwards: {}",
                           "Reverse the order of: {}")).format(text)  # fmt: skip
        thought = thinking(effort, f"{len(listed)} words.")
        return Turn(user, " ".join(reversed(listed)), thought, effort=effort, key=user)
    if kind == 3:
        one = rng.choice(texts.words()[:1500]) if rng.random() < 0.8 else odd_word(rng)
        user = rng.choice(("Spell {}", "Spell the word '{}'", "How do you spell {}?",
                           "spell: {}")).format(one)  # fmt: skip
        return Turn(user, " ".join(one), thinking(effort, "Spell."), effort=effort, key=user)
    if kind == 4:
        user = rng.choice(("How many words: {}", "Count the words: {}",
                           "How many words are in '{}'?")).format(text)  # fmt: skip
        count = thinking(effort, " ".join(f"{i} {w}" for i, w in enumerate(listed, 1)))
        return Turn(user, f"{len(listed)} words.", count, effort=effort, key=user)
    if kind == 5:
        which = rng.choice(("first", "last"))
        user = rng.choice(("What is the {k} word of: {t}", "Say only the {k} word: {t}")).format(
            k=which, t=text
        )
        picked = listed[0] if which == "first" else listed[-1]
        return Turn(user, picked, thinking(effort, f"The {which} word."), effort=effort, key=user)
    if kind == 6:
        digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 9)))
        user = rng.choice(("Repeat: {}", "Copy this: {}", "Say {}", "repeat {}")).format(digits)
        return Turn(user, digits, thinking(effort, "Copy."), effort=effort, key=user)
    if kind == 7:
        digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 6)))
        user = rng.choice(("Reverse the digits: {}", "Say the digits of {} backwards",
                           "reverse {}")).format(digits)  # fmt: skip
        thought = thinking(effort, " ".join(digits))
        return Turn(user, digits[::-1], thought, effort=effort, key=user)
    field = rng.choice(("text", "name", "value", "query", "word"))
    value = text if rng.random() < 0.6 else str(number(rng, rng.randint(2, 7)))
    user = rng.choice(("Write as JSON with the key {k}: {v}", "JSON, key {k}: {v}",
                       "Put this into JSON under {k}: {v}")).format(k=field, v=value)  # fmt: skip
    answer = json.dumps({field: value})
    return Turn(user, answer, thinking(effort, "JSON."), effort=effort, key=user)


def unknown_turn(rng: random.Random, effort: str) -> Turn:
    """Questions beyond the model, and noise."""
    topic = " ".join(some_words(rng, 1, 3))
    if rng.random() < 0.25:
        topic = " ".join(w.capitalize() for w in topic.split())
    if rng.random() < 0.2:
        topic = "the " + topic
    if rng.random() < 0.2:
        noise = " ".join(some_words(rng, 2, 6))
        user = rough(rng, noise)
        return Turn(user, texts.UNCLEAR, thinking(effort, "Unclear."), effort=effort, key=user)
    plain = rng.choice(texts.FACT_QUESTIONS)
    lead = plain.split("{}")[0]
    what = topic
    for noun in ("capital of ", "history of ", "meaning of "):
        what = f"the {noun}{topic}" if lead.endswith(noun) else what
    text = plain.format(topic)
    user = (text[0].upper() + text[1:] if rng.random() < 0.6 else text) + rng.choice(("", "?", "?"))
    answer = f"I am a small model and do not know about {what}."
    thought = thinking(effort, "Outside what I know.")
    return Turn(user, answer, thought, effort=effort, key=user)
