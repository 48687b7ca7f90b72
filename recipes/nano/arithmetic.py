"""Integer arithmetic written out digit by digit: the reasoning that nano is trained to show."""

from __future__ import annotations


def add(a: int, b: int) -> str:
    """`17+25` as `17+25: 7+5=12 -> 2; 1+2+1=4 -> 42`, operands padded to one length."""
    width = max(len(str(a)), len(str(b)))
    x, y = str(a).zfill(width), str(b).zfill(width)
    steps, carry, done = [], 0, ""
    for i in reversed(range(width)):
        total = int(x[i]) + int(y[i]) + carry
        done = (str(total) if i == 0 else str(total % 10)) + done
        steps.append(f"{x[i]}+{y[i]}{'+1' if carry else ''}={total} -> {done}")
        carry = total // 10
    return f"{x}+{y}: {'; '.join(steps)}"


def subtract(a: int, b: int) -> str:
    """`a-b` with borrows; a smaller first operand is turned round and the sign put back."""
    if a < b:
        return f"{a}<{b}. {subtract(b, a)}. -({b - a}) = {a - b}"
    width = len(str(a))
    x, y = str(a), str(b).zfill(width)
    steps, borrow, done = [], 0, ""
    for i in reversed(range(width)):
        top, taken = int(x[i]), int(y[i]) + borrow
        top += 10 if top < taken else 0
        done = str(top - taken) + done
        steps.append(f"{top}-{y[i]}{'-1' if borrow else ''}={top - taken} -> {done}")
        borrow = int(top >= 10)
    plain = f" = {a - b}" if done != str(a - b) else ""
    return f"{x}-{y}: {'; '.join(steps)}{plain}"


def times_digit(a: int, digit: int, zeros: str = "") -> str:
    """`a * digit`, and the zeros of the digit's place appended at the end."""
    steps, carry, done = [], 0, ""
    text = str(a)
    for i in reversed(range(len(text))):
        total = int(text[i]) * digit + carry
        done = (str(total) if i == 0 else str(total % 10)) + done
        steps.append(f"{text[i]}*{digit}{f'+{carry}' if carry else ''}={total} -> {done}")
        carry = total // 10
    shifted = f" -> {done}{zeros}" if zeros else ""
    return f"{a}*{digit}{zeros}: {'; '.join(steps)}{shifted}"


def multiply(a: int, b: int) -> str:
    """Partial products by the digits of `b`, then their sum."""
    if a == 0 or b == 0:
        return f"{a}*{b}: one is 0 -> 0"
    if len(str(a)) < len(str(b)):
        return f"{a}*{b} = {multiply(b, a)}"
    digits = list(enumerate(reversed(str(b))))
    parts = [(int(d), "0" * place) for place, d in digits if d != "0"]
    lines = [times_digit(a, d, zeros) for d, zeros in parts]
    total = 0
    for count, (d, zeros) in enumerate(parts):
        product = a * d * 10 ** len(zeros)
        if count:
            lines.append(add(total, product))
        total += product
    return ". ".join(lines)


def divide(a: int, b: int) -> str:
    """Long division of `a` by one digit `b`."""
    if b == 0:
        return f"{a}/0: nothing times 0 is {a}"
    steps, rest, done = [], 0, ""
    for digit in str(a):
        here = rest * 10 + int(digit)
        done += str(here // b)
        rest = here % b
        steps.append(f"{here}/{b}={here // b} r {rest} -> {done}")
    plain = f" = {a // b}" if done != str(a // b) else ""
    return f"{a}/{b}: {'; '.join(steps)}{plain}"


def compare(a: int, b: int) -> str:
    """Which of two is larger: by length, else by the first digit that differs."""
    x, y = str(a), str(b)
    if len(x) != len(y):
        return f"{a} has {len(x)} digits, {b} has {len(y)}"
    steps = []
    for p, q in zip(x, y, strict=True):
        sign = "=" if p == q else ">" if p > q else "<"
        steps.append(f"{p}{sign}{q}")
        if p != q:
            break
    return f"{a}, {b}: {'; '.join(steps)}"


def result(a: int, op: str, b: int) -> str:
    """The answer as text: an integer, with a remainder where a division leaves one."""
    if op == "/":
        if b == 0:
            return "undefined"
        return f"{a // b} remainder {a % b}" if a % b else str(a // b)
    return str({"+": a + b, "-": a - b, "*": a * b}[op])


def check(a: int, op: str, b: int) -> str:
    """The inverse operation (for a product: the factors swapped) that confirms a result."""
    if op == "+":
        return subtract(a + b, b)
    if op == "-":
        return add(a - b, b) if a >= b else add(b - a, a)
    if op == "*":
        return multiply(b, a)
    if b == 0:
        return "0*0=0"
    product = multiply(a // b, b)
    return f"{product}. {add(a - a % b, a % b)}" if a % b else product


def bare(trace: str) -> str:
    """A trace without its running results: the short form of low effort."""
    lines = [line.split(": ", 1)[-1].split("; ") for line in trace.split(". ")]
    return ". ".join("; ".join(step.split(" -> ")[0] for step in line) for line in lines)


def brief(a: int, b: int) -> str:
    """A product whose partial products are known by heart: the short form of low effort."""
    if a == 0 or b == 0 or len(str(a)) < len(str(b)):
        return multiply(a, b) if 0 in (a, b) else f"{a}*{b} = {brief(b, a)}"
    lines, total = [], 0
    for place, digit in enumerate(reversed(str(b))):
        if digit == "0":
            continue
        part = int(digit) * 10**place
        lines.append(f"{a}*{part}={a * part}")
        if total:
            lines.append(add(total, a * part))
        total += a * part
    return ". ".join(lines)


def reasoning(a: int, op: str, b: int, effort: str) -> str | None:
    """What goes into `analysis`; None where low effort answers at once."""
    trace = {"+": add, "-": subtract, "*": multiply, "/": divide}[op](a, b)
    if effort == "high":
        return f"{trace}. Check: {check(a, op, b)}. OK"
    if effort == "medium":
        return trace
    small = 12 if op in "*/" else 99
    if max(a if op != "/" else a // 12, b) <= small:
        return None
    return trace if op == "/" else bare(trace) if op in "+-" else brief(a, b)
