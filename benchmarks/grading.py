r"""MATH grading: every published gold respelled and mutated, a second opinion, hostile answers, and speed.

    python benchmarks/grading.py golds  DATA          golds, respellings and mutations: counts
    python benchmarks/grading.py second DATA [CASES]  every verdict that differs from plain math-verify's
    python benchmarks/grading.py fuzz   DATA          verdicts on generated answers, and the slowest of them
    python benchmarks/grading.py speed  DATA          milliseconds a verdict, beside math-verify's

DATA is a folder with MATH's train.jsonl and test.jsonl, CASES are JSONL files with ``gold``, ``right``
and an ``answer`` or a ``response`` that boxes one. ``--out`` writes the whole report to a file,
``--number`` sets how many answers are generated or timed, ``--share 10`` takes every tenth gold,
``--seed`` another sample.

A respelling says the same by rules of notation alone (\dfrac for \frac, a period behind); a mutation
changes a number, a sign, a factor, a letter, a bracket or a part. Mutations may still be equal (-0 is 0):
those that are accepted are listed, with math-verify's opinion of each.
"""

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.data.boxed import last_boxed  # noqa: E402
from utils.grading.tasks.hendrycks_math import math_equal  # noqa: E402
from utils.grading.worker import WorkerFailure  # noqa: E402

WHOLE = re.compile(r"-?[0-9]+")
# What mutations leave alone: words, names of environments and commands.
KEPT = re.compile(
    r"\\(?:text\w*|mbox|begin|end|mathbf)\s*\{[^{}]*\}|\\phantom\s*.|\\[a-zA-Z]+|\\.", re.DOTALL
)
TOKENS = [" ", "\n", "\x00", '"'] + str.split(
    r"""\frac \dfrac { } { } ( ) [ ] \{ \} ^ _ ! % \% $ \$ + - * / = < > \le \ge \neq \approx \in \cup
    \cap , ; : . |
    & \\ \pm \mp \cdot \times \sqrt \sqrt[3] \pi e i x y n f(x) f( 9 99 10^9 1 2 0 3.5 1,000 1{,}000
    \setminus \, ~ \quad \text{cm} \text{and} \text{or} \text{million} \sin \cos \log \ln \exp \max( \gcd(
    \binom \choose \over \infty \emptyset \mathbb{R} \ldots \overline{3} 0. \begin{pmatrix} \end{pmatrix}
    \left \right \lfloor \rfloor \langle \rangle ^\circ \mathrm{e} \phantom _8 _{16} AB 2B 12:30 a.m. √ ²
    ½ π − ９ ٣ ‰ \triangle ABC ¶ ° @ th \displaystyle \boxed{ '"""
)
COSTLY = str.split(
    r"""9^{9^{9^{9}}} 99999999! \binom{10^9}{5\cdot10^8} (a+b+c)^{500} 10^{10^{10}} \sqrt[999]{2} x^{99999}
    2^{32768} (1+10^{-9})^{10^9} e^{e^{e^{e}}} \tan(10^{30}) 0.9^{99999} (-1)^{1/3} 3000! (x^2+1)!
    \binom{x}{n} e^{-9999} 10^{-9999} \log_{1}2 0^0 x^x^x"""
)


def published_golds(folder: Path) -> list[str]:
    """The distinct answers of MATH, but for the two empty ones."""
    lines = [
        line for split in ("train", "test") for line in (folder / f"{split}.jsonl").open(encoding="utf-8")
    ]
    return sorted({json.loads(line)["answer"] for line in lines} - {""})


# ------------------------------------------------------------------------------- respellings, mutations


def respellings(gold: str) -> list[str]:
    """Other ways to write the gold, by rules of notation alone."""
    spaced = re.search(r"\\[a-zA-Z]+ [a-zA-Z]|\\ |text|mbox|\d \d|\d \\frac", gold)
    separated = re.search(r"\d,\d{3}|\\!|\{,\}|\\,", gold)
    found = {f"${gold}$", rf"\({gold}\)", f"{gold}.", rf"{gold}\,", f" {gold} ", rf"\displaystyle {gold}"}
    if gold[-1] not in ".,":
        found |= (
            {f"{{{gold}}}", rf"\boldsymbol{{{gold}}}"} if not re.search(r":|m\b|M|approx", gold) else set()
        )
    for pattern, replacement in (
        (r"\\frac(?![a-z])", r"\\dfrac"), (r"\\frac(?![a-z])", r"\\tfrac"), (r"\\[dt]frac(?![a-z])",
        r"\\frac"), (r"\\(?:left|right)(?![a-z])", ""), (r"\\text\{", r"\\mbox{"), (r"\\text\{",
        r"\\textrm{"), (r"\\mbox\{", r"\\text{"), (r"\\pi(?![a-z])", "π"), ("-", "−"), ("-", " - "),
        (r"\+", " + "), (r"\\infty", "∞"), (r"\^\\circ", "°"), (r"\^\\circ", r"^{\\circ}"),
        (r"\\sqrt\{(\d)\}", r"\\sqrt\1"), (r"\\sqrt\{(\d+)\}", r"√{\1}"), (r"\\sqrt\s*(\d)",
        r"\\sqrt{\1}"), (r"\^(\d)(?!\d)", r"^{\1}"), (r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2"),
        (r"_(\d+)", r"_{\1}"), ("pmatrix", "bmatrix"), (r",\s*\\!\s*", "{,}"), (r"\\cup", r" \\cup "),
        (r"\\leq?(?![a-z])", r"\\leqslant"),
    ):  # fmt: skip
        found.add(re.sub(pattern, replacement, gold))
    if r"\left" not in gold:
        opened = re.sub(r"(?<!\\)([(\[])", r"\\left\1", gold)
        found.add(re.sub(r"(?<!\\)([)\]])", r"\\right\1", opened))
    if not spaced:
        found.add(gold.replace(" ", ""))
    if not separated:
        found.add(gold.replace(",", ", "))
    if not re.search(r"\d\s*\\frac|\}\s*[!^]", gold):
        found.add(re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}(?![a-zA-Z\\( ])", r"\1/\2", gold))
    if re.fullmatch(r"-?[0-9]{4,}", gold):
        found |= {
            f"{int(gold):,}",
            f"{int(gold):,}".replace(",", "{,}"),
            f"{int(gold):,}".replace(",", r",\!"),
        }
    if re.fullmatch(r"[-0-9.]+", gold):
        found.add(rf"\text{{{gold}}}")
    return sorted(found - {gold})


def mutations(gold: str) -> dict[str, str]:
    """Answers that say something else, each with the kind of change."""
    found: dict[str, str] = {}

    def add(kind: str, start: int, end: int, replacement: str) -> None:
        answer = gold[:start] + replacement + gold[end:]
        if answer != gold:
            found.setdefault(answer, kind)

    for start, text in _parts(gold):
        for match in re.finditer(r"\d+", text):
            digits, at, to = match[0], start + match.start(), start + match.end()
            for number in (str(int(digits) + 1), str(abs(int(digits) - 1)), digits + "1"):
                add("number", at, to, number.zfill(len(digits)))
            if int(digits) != 1 and _is_factor(gold[:at], gold[to:]):
                add("factor dropped", at, to, "")
        for match in re.finditer("[-+]", text):
            at = start + match.start()
            add("sign", at, at + 1, "+" if match[0] == "-" else "-")
        for match in re.finditer("[a-zA-Z]", text):
            at = start + match.start()
            add("letter dropped", at, at + 1, "")
            add("letter changed", at, at + 1, "w" if match[0] != "w" else "q")
        for match in re.finditer(r"[(\[]", text) if "," in gold else ():
            at = start + match.start()
            add("bracket", at, at + 1, "[" if match[0] == "(" else "(")
    if re.match(r"\s*[\d\\a-zA-Z(]", gold) and not _NO_SIGN.match(gold):
        add("sign", 0, 0, "-")
    for match in re.finditer(
        r"\\sqrt\s*(?:\[\d\])?(?:\{[^{}]*\}|\d)|\\pi(?![a-z])|\\(?:sin|cos|tan|sec|csc)\b", gold
    ):
        alone = re.search(r"(?:[{(,]\s*|frac\s*|^\s*)$", gold[: match.start()])
        add("factor dropped", *match.span(), "1" if alone else " ")
    for match in re.finditer(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", gold):
        add("fraction inverted", *match.span(), rf"\frac{{{match[2]}}}{{{match[1]}}}")
    if "," in gold and not re.search(r"\d,\d{3}(?!\d)|\\!|\{,\}|\\,", gold):
        add("part added", len(gold), len(gold), ", 1999")
        if not re.search(r"[a-zA-Z]{3}|cup", gold):
            last = re.search(r",[^,()\[\]{}]*(?=[)\]]|$|\\\})", gold)
            if last:
                add("part dropped", *last.span(), "")
    return found


_NO_SIGN = re.compile(r"\s*\\(?:text|begin|mbox|left|\{|\$)|\s*\(.*,|.*[=<:]|[A-Z]")


def _parts(gold: str) -> Iterator[tuple[int, str]]:
    at = 0
    for match in [*KEPT.finditer(gold), None]:
        end = match.start() if match else len(gold)
        yield at, gold[at:end]
        at = match.end() if match else end


def _is_factor(before: str, after: str) -> bool:
    """Whether a number there multiplies what follows it."""
    followed = re.match(r"\s*[a-zA-Z\\(]", after) and not re.match(
        r"\s*\\(?:[!,;% ]|text|mbox|right|cup|end|pm|le|cdot|times|in\b)", after
    )
    return bool(followed) and not re.search(r"[_^.{]\s*$|frac\s*$", before)


# ----------------------------------------------------------------------------------------------- verdicts


def markdown_table(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def ours(gold: str, answer: str) -> bool:
    try:
        return math_equal(gold, answer)
    except WorkerFailure:
        return False


def math_verify(gold: str, answer: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


def report_golds(golds: list[str], options: argparse.Namespace) -> Iterator[str]:
    """Counts, and every respelling that is rejected and every mutation that is accepted."""
    rows = []
    for name, some in (
        ("whole numbers", [gold for gold in golds if WHOLE.fullmatch(gold.strip())]),
        ("others", [gold for gold in golds if not WHOLE.fullmatch(gold.strip())]),
    ):
        itself = sum(ours(gold, gold) for gold in some)
        respelled = [(gold, answer) for gold in some for answer in respellings(gold)]
        rejected = [pair for pair in respelled if not ours(*pair)]
        mutated = [(gold, answer, kind) for gold in some for answer, kind in mutations(gold).items()]
        accepted = [case for case in mutated if ours(*case[:2])]
        rows.append([name, len(some), itself, len(respelled), len(rejected), len(mutated), len(accepted)])
        yield from (f"rejected: {gold!r} as {answer!r}" for gold, answer in rejected)
        for gold, answer, kind in accepted:
            opinion = "equal" if math_verify(gold, answer) else "different"
            yield f"accepted: {gold!r} with {kind} as {answer!r}; math-verify: {opinion}"
        yield f"mutations of {name}: {dict(Counter(kind for *_, kind in mutated))}"
    yield markdown_table(
        ["golds", "distinct", "equal themselves", "respellings", "rejected", "mutations", "accepted"], rows
    )


def report_second(golds: list[str], options: argparse.Namespace) -> Iterator[str]:
    """Every verdict that differs from math-verify's: each gold with itself, with a respelling and a mutation
    drawn at random, and the cases."""
    rng = random.Random(options.seed)
    pairs = [("itself", gold, gold, True) for gold in golds]
    pairs += [("respelling", gold, rng.choice(respellings(gold)), True) for gold in golds]
    for gold in golds:
        if changed := list(mutations(gold).items()):
            answer, kind = rng.choice(changed)
            pairs.append((kind, gold, answer, False))
    for path in options.cases:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            case = json.loads(line)
            answer = case.get("answer") or last_boxed(case.get("response", "")) or ""
            if case.get("dataset", "math") == "math":
                pairs.append((f"case: {case['kind']}", case["gold"], answer, case["right"]))
    counts: Counter[tuple[str, bool, bool]] = Counter()
    for kind, gold, answer, right in pairs:
        verdicts = ours(gold, answer), math_verify(gold, answer)
        counts[kind, verdicts[0] == right, verdicts[1] == right] += 1
        if verdicts[0] != verdicts[1]:
            said = "ours accepts" if verdicts[0] else "math-verify accepts"
            yield f"{kind}: {said} {answer!r} for {gold!r}; it is {'right' if right else 'wrong'}"
    rows = []
    for kind in dict.fromkeys(kind for kind, *_ in pairs):
        by = {key[1:]: number for key, number in counts.items() if key[0] == kind}
        total = sum(by.values())
        rows.append([kind, total, total - by.get((True, True), 0) - by.get((True, False), 0),
                     total - by.get((True, True), 0) - by.get((False, True), 0)])  # fmt: skip
    yield markdown_table(["answers", "number", "ours errs", "math-verify errs"], rows)


def report_fuzz(golds: list[str], options: argparse.Namespace) -> Iterator[str]:
    """Verdicts on answers made of tokens, of golds with a few tokens changed, and of costly expressions."""
    rng = random.Random(options.seed)
    counts: Counter[str] = Counter()
    slowest: list[tuple[float, str, str]] = []
    for _ in range(options.number):
        gold = rng.choice(golds)
        answer = _generated(rng, gold, golds)
        started = time.perf_counter()
        try:
            counts["right" if math_equal(gold, answer) else "wrong"] += 1
        except WorkerFailure:
            counts["not compared"] += 1
        except Exception as error:
            counts["raised"] += 1
            yield f"raised {error!r}: {gold!r} {answer!r}"
        slowest = sorted([*slowest, (time.perf_counter() - started, gold, answer)], reverse=True)[:5]
    yield from (f"{seconds:.3f} s: {answer[:100]!r} for {gold[:40]!r}" for seconds, gold, answer in slowest)
    rows = [[options.number, *(counts[name] for name in ("right", "wrong", "not compared", "raised"))]]
    rows[0].append(f"{slowest[0][0]:.2f}")
    yield markdown_table(["answers", "right", "wrong", "not compared", "raised", "slowest, s"], rows)


def _generated(rng: random.Random, gold: str, golds: list[str]) -> str:
    kind = rng.random()
    if kind < 0.4:
        return "".join(rng.choice(TOKENS) for _ in range(rng.randint(1, rng.choice((6, 15, 40, 120)))))
    if kind < 0.7:
        text = list(gold)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randint(0, 1)] = rng.choice([[rng.choice(TOKENS)], []])
        return "".join(text)
    if kind < 0.9:
        text = rng.choice(COSTLY)
        for _ in range(rng.randint(0, 6)):
            other, sign = rng.choice([*COSTLY, rng.choice(golds)]), rng.choice("+-*^/,=< ")
            text = rng.choice(
                [f"{text}{sign}{other}", f"({text}){sign}({other})", f"({text})!", f"|{text}|",
                 rf"\frac{{{text}}}{{{other}}}",
                 rf"\sqrt{{{text}}}", f"{{{text}}}^{{{other}}}", rf"\sin({text})", rf"\pm {text}"]
            )  # fmt: skip
        return text
    part = rng.choice([*TOKENS, *COSTLY, rng.choice(golds)]) + rng.choice(TOKENS)
    return part * rng.randint(1, 1000 // len(part) + 1)


def report_speed(golds: list[str], options: argparse.Namespace) -> Iterator[str]:
    """Mean milliseconds of typical answers: the gold itself, respelled, mutated."""
    rng = random.Random(options.seed)
    rows = []
    for name, change in (
        ("the gold", lambda gold: [gold]),
        ("respelled", respellings),
        ("mutated", lambda gold: sorted(mutations(gold))),
    ):
        pairs = [(gold, rng.choice(change(gold) or [gold])) for gold in rng.choices(golds, k=options.number)]
        row: list[object] = [name, len(pairs)]
        for grader in (ours, math_verify):
            grader(*pairs[0])
            started = time.perf_counter()
            for pair in pairs:
                grader(*pair)
            row.append(f"{1000 * (time.perf_counter() - started) / len(pairs):.2f}")
        rows.append(row)
    yield markdown_table(["answer", "number", "ours, ms", "math-verify, ms"], rows)


REPORTS = {"golds": report_golds, "second": report_second, "fuzz": report_fuzz, "speed": report_speed}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", choices=REPORTS)
    parser.add_argument("data", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--share", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    golds = published_golds(options.data)[:: options.share]
    lines = list(REPORTS[options.report](golds, options))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines[-8:] if options.out else lines))


if __name__ == "__main__":
    main()
