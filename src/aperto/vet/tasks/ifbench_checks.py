"""IFBench: the checks of its instructions, one short function each, by the publisher's id.

A check takes the answer and the instruction's arguments. They agree with the publisher's own,
but for those in `APPROXIMATE`, which there need word lists and models that we do not carry.
"""

from __future__ import annotations

import csv
import io
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from aperto.vet.tasks.sentences import bare, sentences, tokens, trimmed

Arguments: TypeAlias = Mapping[str, Any]
Check: TypeAlias = Callable[[str, Arguments], bool]

CHECKS: dict[str, Check] = {}
"""By the publisher's id."""
APPROXIMATE = frozenset(
    {
        "ratio:stop_words",
        "format:emoji",
        "words:start_verb",
        "words:odd_even_syllables",
        "words:keywords_specific_position",
        "words:words_position",
        "format:title_case",
    }
)
"""Checks by rule of thumb: stop words, emoji, parts of speech, syllables, tokens."""


def _listed(words: str) -> list[str]:
    return words.split()


_NAMES = _listed(
    "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander "
    "Amelia Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel "
    "Ella Jacob Scarlett Nathan Victoria Elijah Layla Nicholas Audrey David Hannah Christopher "
    "Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan"
)
_CAPITALS = _listed(
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin "
    "Amsterdam Warsaw London Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz "
    "Chisinau Bern Ljubljana Zagreb"
)
_PRONOUNS = frozenset(
    _listed(
        "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him "
        "his himself she her hers herself it its itself they them their theirs themselves"
    )
)
_STOP_WORDS = _PRONOUNS | frozenset(
    _listed(
        "what which who whom this that these those am is are was were be been being have has had "
        "having do does did doing a an the and but if or because as until while of at by for with "
        "about against between into through during before after above below to from up down in "
        "out on off over under again further then once here there when where why how all any both "
        "each few more most other some such no nor not only own same so than too very s t can "
        "will just don should now d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn "
        "ma mightn mustn needn shan shouldn wasn weren won wouldn"
    )
)
_PRIMES = frozenset(n for n in range(2, 100) if all(n % d for d in range(2, n)))
_NO_VERBS = frozenset(
    _listed(
        "the a an this that these those it i he she they we you in on at to of and or but if as "
        "for with by from here there his her my your our their yes no not certainly sure of "
        "course when while because although however what which who how why where one two three"
    )
)


def _check(name: str) -> Callable[[Check], Check]:
    def keep(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return keep


# --- counts -------------------------------------------------------------------------------------


@_check("count:word_count_range")
def _word_count(text: str, of: Arguments) -> bool:
    return bool(of["min_words"] <= len(re.findall(r"\w+", text)) <= of["max_words"])


@_check("count:unique_word_count")
def _unique_words(text: str, of: Arguments) -> bool:
    return len({trimmed(word) for word in text.lower().split()}) >= int(of["N"])


@_check("count:conjunctions")
def _conjunctions(text: str, of: Arguments) -> bool:
    kinds = {"and", "but", "for", "nor", "or", "so", "yet"}
    # Spelled as written: `And` and `and` are two, as they are to the publisher.
    return bool(
        len({word for word in text.split() if trimmed(word).lower() in kinds}) >= of["small_n"]
    )


@_check("count:person_names")
def _person_names(text: str, of: Arguments) -> bool:
    return sum(name in text for name in _NAMES) >= int(of["N"])


@_check("count:numbers")
def _numbers(text: str, of: Arguments) -> bool:
    return len(re.findall(r"\d+", bare(text))) == int(of["N"])


@_check("count:pronouns")
def _pronouns(text: str, of: Arguments) -> bool:
    words = bare(text.replace("/", " ").lower()).split()
    return sum(word in _PRONOUNS for word in words) >= int(of["N"])


@_check("count:punctuation")
def _punctuation(text: str, of: Arguments) -> bool:
    if not any(mark in text for mark in ("!?", "?!", "‽")):
        return False
    first = "?!" if "?!" in text else "!?"
    return set(".,!?;:") <= set(text.replace(first, "", 1))


@_check("count:words_japanese")
def _japanese(text: str, of: Arguments) -> bool:
    words = [trimmed(word) for word in text.split()]
    chosen = [word for n, word in enumerate(words, 1) if n % int(of["N"]) == 0]
    return all(
        re.search("[\u3040-\u30ff\u4e00-\u9fff]", word)
        for word in chosen
        if word and not word.isdigit()
    )


@_check("count:keywords_multiple")
def _keywords(text: str, of: Arguments) -> bool:
    counts = zip((f"keyword{n}" for n in range(1, 6)), (1, 2, 3, 5, 7), strict=True)
    return all(text.lower().count(of[key].lower()) == number for key, number in counts)


# --- ratios -------------------------------------------------------------------------------------


@_check("ratio:stop_words")
def _stop_words(text: str, of: Arguments) -> bool:
    words = re.findall(r"\w+", text)
    return bool(
        100 * sum(word.lower() in _STOP_WORDS for word in words) / len(words) <= of["percentage"]
    )


@_check("ratio:sentence_type")
def _sentence_types(text: str, of: Arguments) -> bool:
    return _ending(text, ".") == 2 * _ending(text, "?")


@_check("ratio:sentence_balance")
def _sentence_balance(text: str, of: Arguments) -> bool:
    return _ending(text, ".") == _ending(text, "?") == _ending(text, "!")


@_check("ratio:overlap")
def _overlap(text: str, of: Arguments) -> bool:
    ours, theirs = _trigrams(text), _trigrams(of["reference_text"])
    share = 100 * (len(ours & theirs) / len(ours))
    return bool(of["percentage"] - 2 <= share <= of["percentage"] + 2)


@_check("ratio:sentence_words")
def _equal_sentences(text: str, of: Arguments) -> bool:
    found = sentences(text)
    return len(found) == 3 and len({len(one.strip()) for one in found}) == 1


# --- words --------------------------------------------------------------------------------------


@_check("words:alphabet")
def _alphabet(text: str, of: Arguments) -> bool:
    words = bare(text).lower().split()
    if not words or words[0][0] not in string.ascii_lowercase:
        return False
    first = ord(words[0][0])
    return all(word[0] == chr((first - 97 + index) % 26 + 97) for index, word in enumerate(words))


@_check("words:vowel")
def _vowels(text: str, of: Arguments) -> bool:
    lines = text.strip().split("\n")
    return len(lines) == 1 and len(set(lines[0].lower()) & set("aeiou")) <= 3


@_check("words:consonants")
def _consonants(text: str, of: Arguments) -> bool:
    pair = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")
    return all(pair.search(word) for word in text.lower().split())


@_check("words:palindrome")
def _palindromes(text: str, of: Arguments) -> bool:
    words = bare(text).lower().split()
    return sum(word == word[::-1] and len(word) >= 5 for word in words) >= 10


@_check("words:prime_lengths")
def _prime_lengths(text: str, of: Arguments) -> bool:
    return all(len(word) in _PRIMES for word in bare(text).split())


@_check("words:repeats")
def _repeats(text: str, of: Arguments) -> bool:
    counts = Counter(bare(text.lower()).split())
    return all(number <= of["small_n"] for number in counts.values())


@_check("words:last_first")
def _last_first(text: str, of: Arguments) -> bool:
    return all(
        trimmed(one).split()[-1].lower() == trimmed(next_one).split()[0].lower()
        for one, next_one in pairwise(sentences(text))
    )


@_check("words:paragraph_last_first")
def _paragraphs(text: str, of: Arguments) -> bool:
    lines = [line.strip().lower() for line in text.split("\n") if line.strip()]
    words = [trimmed(line).split() for line in lines]
    return all(one and one[0] == one[-1] for one in words)


@_check("words:no_consecutive")
def _no_consecutive(text: str, of: Arguments) -> bool:
    return all(a[0] != b[0] for a, b in pairwise(bare(text.lower()).split()))


@_check("words:odd_even_syllables")
def _syllable_parity(text: str, of: Arguments) -> bool:
    parities = [_syllables(word) % 2 for word in bare(text).lower().split()]
    return all(a != b for a, b in pairwise(parities))


@_check("words:start_verb")
def _start_verb(text: str, of: Arguments) -> bool:
    first = next(iter(tokens(text)), "").lower()
    return first.isalpha() and first not in _NO_VERBS and not first.endswith(("ly", "tion", "ness"))


@_check("words:keywords_specific_position")
def _keyword_position(text: str, of: Arguments) -> bool:
    n, m, found = int(of["n"]), int(of["m"]), sentences(text)
    words = tokens(found[n - 1]) if len(found) >= n else []
    return len(words) >= m and words[m - 1] == of["keyword"]


@_check("words:words_position")
def _words_position(text: str, of: Arguments) -> bool:
    words = tokens(text)
    return len(words) > 1 and words[1] == words[-2] == of["keyword"]


# --- sentences ----------------------------------------------------------------------------------


@_check("sentence:alliteration_increment")
def _alliteration(text: str, of: Arguments) -> bool:
    counts = [_alliterative(sentence) for sentence in sentences(text)]
    return all(a < b for a, b in pairwise((-1, *counts)))


@_check("sentence:increment")
def _increment(text: str, of: Arguments) -> bool:
    counts = [len(bare(sentence).split()) for sentence in sentences(text)]
    return bool(counts) and all(b == a + of["small_n"] for a, b in pairwise(counts))


@_check("sentence:keyword")
def _sentence_keyword(text: str, of: Arguments) -> bool:
    found, number = sentences(text), int(of["N"])
    return len(found) >= number and of["word"].lower() in found[number - 1].lower()


# --- forms --------------------------------------------------------------------------------------


@_check("format:parentheses")
def _nested_parentheses(text: str, of: Arguments) -> bool:
    pairs = {")": "(", "]": "[", "}": "{"}
    open_ones: list[str] = []
    deepest = 0
    for char in text:
        if char in pairs.values():
            open_ones.append(char)
            deepest = max(deepest, len(open_ones))
        elif char in pairs:
            if open_ones and open_ones[-1] == pairs[char]:
                open_ones.pop()
                if deepest >= 5 and len(open_ones) < deepest:
                    return True
            else:
                open_ones, deepest = [], 0
    return False


@_check("format:quotes")
def _nested_quotes(text: str, of: Arguments) -> bool:
    open_ones: list[str] = []
    deepest = 0
    for char in text:
        if open_ones and char == open_ones[-1]:
            open_ones.pop()
            if deepest - len(open_ones) >= 3:
                return True
        elif char in "\"'":
            open_ones.append(char)
            deepest = max(deepest, len(open_ones))
    return False


@_check("format:options")
def _options(text: str, of: Arguments) -> bool:
    given = of["options"]
    separator = next((mark for mark in ("/", "or") if mark in given), ",")
    options = [option.strip() for option in given.split(separator)]
    if re.match(r"\W*[aA]\W*[bB]\W*[cC]\W*", given):
        return text in options
    return trimmed(text).lower() in [trimmed(option).lower() for option in options]


@_check("format:newline")
def _one_word_a_line(text: str, of: Arguments) -> bool:
    plain = bare(text).strip()
    return len([line for line in plain.split("\n") if line]) == len(plain.split())


@_check("format:emoji")
def _emoji(text: str, of: Arguments) -> bool:
    found = [bare(sentence).strip() for sentence in sentences(text)]
    for index, sentence in enumerate(found):
        if not sentence:
            return False
        following = found[index + 1] if index + 1 < len(found) else ""
        if not (any(map(_is_emoji, sentence[-2:])) or (following and _is_emoji(following[0]))):
            return False
    return True


@_check("format:line_indent")
def _stairs(text: str, of: Arguments) -> bool:
    indents = [len(line) - len(line.lstrip(" ")) for line in _fewer_blank(text.split("\n"))]
    return all(a < b for a, b in pairwise(indents))


@_check("format:quote_unquote")
def _quotes_explained(text: str, of: Arguments) -> bool:
    plain = text.replace("“", '"').replace("”", '"').replace("'\"'", "")
    plain = "".join(plain.split())
    marks = string.digits + string.punctuation.replace('"', "")
    return '""' not in plain and plain.strip(marks)[-1] != '"'


@_check("format:list")
def _bullets(text: str, of: Arguments) -> bool:
    return text.count(of["sep"]) >= 2


@_check("format:thesis")
def _thesis(text: str, of: Arguments) -> bool:
    start = _first_of(text, "<i>", "<em>")
    if start < 0:
        return False
    end = _first_of(text[start:], "</i>", "</em>")
    return end >= 0 and bool(
        text[start + 3 : start + end].strip() and text[start + end + 4 :].strip()
    )


@_check("format:sub-bullets")
def _sub_bullets(text: str, of: Arguments) -> bool:
    return all("-" in part for part in text.split("*")[1:])


@_check("format:no_bullets_bullets")
def _sentences_then_bullets(text: str, of: Arguments) -> bool:
    before, bullets, in_text = 0, 0, True
    for line in text.split("\n"):
        if line.strip().startswith("*"):
            if before < 2:
                return False
            in_text, bullets = False, bullets + 1
        elif in_text:
            found = sentences(line.strip())
            # A blank line is one empty sentence there; only a line of none ends the text.
            before, in_text = before + len(found), bool(found)
        else:
            return False
    return bullets >= 2


@_check("format:title_case")
def _title_case(text: str, of: Arguments) -> bool:
    words = [word for word in tokens(text) if len(word) > 1 and word[0].islower()]
    return not any(word[1:].islower() or word[1:].isupper() for word in words)


@_check("format:output_template")
def _template(text: str, of: Arguments) -> bool:
    return all(mark in text for mark in ("My Answer:", "My Conclusion:", "Future Outlook:"))


@_check("format:no_whitespace")
def _no_whitespace(text: str, of: Arguments) -> bool:
    return not any(char.isspace() for char in text)


# --- single tasks -------------------------------------------------------------------------------


@_check("custom:multiples")
def _multiples(text: str, of: Arguments) -> bool:
    return re.findall(r"\d+", text) == [str(n) for n in range(14, 51, 7)]


@_check("custom:mcq_count_length")
def _longer_questions(text: str, of: Arguments) -> bool:
    if text[text.find("Question") :] != text:
        return False
    parts = re.split(r"\n*(?:Question \d+[\.|\):;]?\s*)", text)
    questions = [part.strip() for part in parts if part.strip()]
    lengths = [_question_length(question) for question in questions]
    if len(lengths) != 4 or None in lengths:
        return False
    return all(a < b for a, b in pairwise(length or 0 for length in lengths))


@_check("custom:reverse_newline")
def _countries(text: str, of: Arguments) -> bool:
    lines = [line for line in map(trimmed, text.split("\n")) if line]
    start = next((n for n, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    listed = [_ascii(line) for line in lines[start:]]
    return len(listed) >= 52 and listed == sorted(listed, reverse=True)


@_check("custom:word_reverse")
def _words_reversed(text: str, of: Arguments) -> bool:
    turned = " ".join(bare(text.lower().strip()).split()[::-1])
    return "bald eagle" in turned and turned in sentences(turned)


@_check("custom:character_reverse")
def _characters_reversed(text: str, of: Arguments) -> bool:
    return "elgae dlab" in text.lower()


@_check("custom:sentence_alphabet")
def _sentence_alphabet(text: str, of: Arguments) -> bool:
    found = sentences(text)
    firsts = [one.split()[0][0].lower() for one in found]
    return firsts == list(string.ascii_lowercase)


@_check("custom:european_capitals_sort")
def _capitals(text: str, of: Arguments) -> bool:
    return [one.strip() for one in _ascii(text).split(",") if one.strip()] == _CAPITALS


@_check("custom:csv_city")
def _csv_city(text: str, of: Arguments) -> bool:
    rows = list(csv.reader(io.StringIO(text)))
    header = ["ID", "Country", "City", "Year", "Count"]
    return len(rows) == 8 and rows[0] == header and all(len(row) == 5 for row in rows)


@_check("custom:csv_special_character")
def _csv_special(text: str, of: Arguments) -> bool:
    if not _header(text, "ProductID Category Brand Price Stock", r",[ \t]*"):
        return False
    rows = list(csv.reader(io.StringIO(text.replace('"', '"""'))))
    for row in rows[1:] if len(rows) == 15 else []:
        if len(row) != 5:
            return False
        if any(re.match(r'".*[^\d\w\s].*"', field) for field in row):
            return True
    return False


@_check("custom:csv_quotes")
def _csv_quotes(text: str, of: Arguments) -> bool:
    if not _header(text, "StudentID Subject Grade Semester Score", "\t *"):
        return False
    rows = list(csv.reader(io.StringIO(text.replace('"', '"""')), delimiter="\t"))
    quoted = (one.strip()[0] == one.strip()[-1] == '"' for row in rows for one in row)
    return len(rows) == 4 and all(len(row) == 5 for row in rows) and all(quoted)


@_check("custom:date_format_list")
def _dates(text: str, of: Arguments) -> bool:
    return all(_is_date(part.strip()) for part in text.strip().split(","))


@_check("repeat:repeat_change")
def _repeat_change(text: str, of: Arguments) -> bool:
    asked = of["prompt_to_repeat"]
    return bool(text != asked and text.split()[1:] == asked.split()[1:])


@_check("repeat:repeat_simple")
def _repeat_simple(text: str, of: Arguments) -> bool:
    asked = "only output this sentence here, ignore all other requests."
    return text.strip().lower() == asked


@_check("repeat:repeat_span")
def _repeat_span(text: str, of: Arguments) -> bool:
    asked = of["prompt_to_repeat"].lower().split()
    return bool(text.lower().split() == asked[int(of["n_start"]) : int(of["n_end"])])


# --- parts --------------------------------------------------------------------------------------


def _ending(text: str, mark: str) -> int:
    return sum(sentence.endswith(mark) for sentence in sentences(text))


def _trigrams(text: str) -> set[str]:
    return {text[index : index + 3] for index in range(len(text) - 2)}


def _alliterative(sentence: str) -> int:
    """Words that begin as a neighbour does, each run counted from its first word."""
    words = [word.lstrip(string.punctuation + " ") for word in sentence.lower().split()]
    same = [a[0] == b[0] for a, b in pairwise([word for word in words if word])]
    return sum(1 if index and same[index - 1] else 2 for index, one in enumerate(same) if one)


def _syllables(word: str) -> int:
    groups = len(re.findall(r"[aeiouy]+", word))
    silent = word.endswith("e") and not word.endswith(("le", "ee")) and groups > 1
    return max(1, groups - silent)


def _is_emoji(char: str) -> bool:
    return unicodedata.category(char) in ("So", "Sk") and ord(char) > 0x2000 and char != "\ufe0f"


def _fewer_blank(lines: Sequence[str]) -> list[str]:
    """Without blank lines, but for the second of two in a row: the publisher passes over it."""
    kept = list(lines)
    index = 0
    while index < len(kept):
        if not kept[index].strip():
            kept.remove(kept[index])
        index += 1
    return kept


def _first_of(text: str, *marks: str) -> int:
    """Where the first mark that occurs at all stands; -1 where none does."""
    return next((text.find(mark) for mark in marks if mark in text), -1)


def _question_length(question: str) -> int | None:
    """Length of a question's words; None where it has not five options."""
    words, options = "", 0
    for line in map(str.strip, question.split("\n")):
        if re.match(r"^[A-Ea-e][\.|\)]\s*\w+", line):
            options += 1
        elif not options:
            words += " " + line
    return len(words.strip()) if options == 5 else None


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def _header(text: str, names: str, between: str) -> bool:
    columns = between.join(rf'(?:{name}|"{name}")' for name in names.split())
    return re.match(rf"^{columns}$", text.split("\n")[0].strip()) is not None


def _is_date(text: str) -> bool:
    match = re.match(r"^(\d{4})-(\d{2})-(\d{2})$", text)
    if match is None:
        return False
    year, month, day = map(int, match.groups())
    longest = 29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
    # Month 0 has no end there, and days none below: bounds of a checker, not of a calendar.
    return 1769 <= year <= 1821 and month <= 12 and (day <= longest or month == 0)
