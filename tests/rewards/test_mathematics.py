"""Answers as they stand in MATH, GSM8K, AIME and multiple-choice sets; verdicts on completions."""

import itertools
import pathlib
import re
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given

from polgrad.rewards import mathematics, verifiers

# Gold, a right completion, a wrong one, and a right one in other words.
GOLDS = [
    # GSM8K: numbers, some with thousands' commas, money, units.
    ("72", "The answer is 72.", "The answer is 27.", r"48 + 24 = \boxed{72}"),
    ("1,234", r"\boxed{1,234}", r"\boxed{1,243}", "So she needs 1234 dollars.\n#### 1234"),
    ("10800", "#### 10,800", "#### 10,080", r"$10{,}800$"),
    ("-5", r"\boxed{-5}", r"\boxed{5}", "Answer: \u22125"),
    ("5 + 4 = <<5+4=9>>9\n#### 9", "#### 9", "#### 8", r"Thus, $\boxed{9}$."),
    ("$18.90", r"$\boxed{\$18.90}$", r"$\boxed{\$18.09}$", "The answer is 18.9."),
    (r"\$32,\!348", r"\boxed{\$32,348}", r"\boxed{\$32,384}", r"\boxed{32348}"),
    ("0.5", "The answer is 0.5.", "The answer is 0.05.", r"It is $\frac{1}{2}$."),
    ("70000", "#### 70000", "#### 7000", r"Answer: $70{,}000"),
    ("18 apples", "18 apples", "81 apples", r"\boxed{18}"),
    # AIME: integers from 0 to 999.
    ("042", r"\boxed{42}", r"\boxed{24}", r"m+n = 42, so the answer is $\boxed{042}$."),
    ("204", r"$s+t = \boxed{204}$", r"$s+t = \boxed{402}$", "**Final Answer:** 204"),
    ("0", r"\boxed{0}", r"\boxed{1}", r"$\sin 0 = 0$"),
    # MATH: fractions and radicals.
    (r"\frac{1}{2}", r"$\frac{1}{2}$", r"$\frac{1}{3}$", r"\boxed{0.5}"),
    (r"\frac59", r"\boxed{\frac{5}{9}}", r"\boxed{\frac{9}{5}}", "The answer is 5/9."),
    (r"\dfrac{14}{3}", r"$\frac{14}{3}$", r"$\frac{3}{14}$", r"\boxed{4\frac{2}{3}}"),
    (r"-\frac{35}{9}", r"\boxed{-\frac{35}{9}}", r"\boxed{\frac{35}{9}}", r"\boxed{\frac{-35}{9}}"),
    (r"3\frac{1}{2}", r"\boxed{3\frac{1}{2}}", r"\boxed{\frac{3}{2}}", r"\boxed{7/2}"),
    (r"1 \frac{4}{5}", r"$1\frac45$", r"$\frac45$", r"\boxed{1.8}"),
    (r"\frac{1}{2^{99}}", r"$\frac{1}{2^{99}}$", r"$\frac{1}{2^{98}}$", r"$2^{-99}$"),
    (r"10^{-20}", r"$10^{-20}$", r"$10^{-21}$", r"$\frac{1}{10^{20}}$"),
    ("1/3", r"\boxed{\frac13}", r"\boxed{0.33}", r"\boxed{0.333333}"),
    (r"0.\overline{3}", r"\boxed{0.\overline{3}}", r"\boxed{0.3}", r"\boxed{\frac{1}{3}}"),
    (r"3\sqrt{13}", r"\boxed{3\sqrt{13}}", r"\boxed{13\sqrt{3}}", r"$\sqrt{117}$"),
    (r"\sqrt{2}", r"$\sqrt{2}$", r"$\sqrt{3}$", r"\boxed{2^{1/2}}"),
    (r"\frac{\sqrt{3}}{3}", r"$\frac{\sqrt3}{3}$", r"$\sqrt3$", r"$\frac{1}{\sqrt{3}}$"),
    (r"1+\sqrt{5}", r"$1+\sqrt{5}$", r"$1-\sqrt{5}$", r"$\sqrt5 + 1$"),
    (r"\sqrt[3]{4}", r"$\sqrt[3]{4}$", r"$\sqrt{4}$", r"$4^{1/3}$"),
    # Big powers and products.
    (r"2^{2005}", r"\boxed{2^{2005}}", r"\boxed{2^{2004}}", r"$2 \cdot 2^{2004}$"),
    (r"10^{20}+1", r"$10^{20}+1$", r"$10^{20}$", r"\boxed{100000000000000000001}"),
    (r"6.28 \times 10^5", r"$6.28\times 10^{5}$", r"$6.28\times 10^{4}$", r"\boxed{628000}"),
    (r"5!", r"\boxed{5!}", r"\boxed{5}", r"\boxed{120}"),
    (r"\binom{10}{3}", r"$\binom{10}{3}$", r"$\binom{10}{4}$", r"\boxed{120}"),
    # Constants and functions.
    (r"25\pi", r"\boxed{25\pi}", r"\boxed{25}", r"$\pi \cdot 5^2$"),
    (r"\frac{\pi}{6}", r"$\frac{\pi}{6}$", r"$\frac{\pi}{3}$", r"$\pi/6$"),
    (r"e^2", r"$e^2$", r"$2^e$", r"$e \cdot e$"),
    (r"\log_2 3", r"$\log_2 3$", r"$\log_3 2$", r"$\frac{\log_2 9}{2}$"),
    (r"\cot x", r"$\cot x$", r"$\tan x$", r"$\frac{\cos x}{\sin x}$"),
    (r"2 + 3i", r"\boxed{2+3i}", r"\boxed{2-3i}", r"$3i + 2$"),
    # Percent, degrees, units.
    (r"50\%", r"\boxed{50\%}", r"\boxed{5\%}", "The answer is 50%."),
    (r"17\frac{1}{2}\%", r"\boxed{17.5\%}", r"\boxed{0.5\%}", r"\boxed{17\frac12\%}"),
    (r"90^\circ", r"\boxed{90^\circ}", r"\boxed{60^\circ}", r"The angle is $90$ degrees."),
    (r"72^{\circ}", r"$72^{\circ}$", r"$27^{\circ}$", r"\boxed{72}"),
    (r"5\text{ cm}", r"\boxed{5\text{ cm}}", r"\boxed{6\text{ cm}}", r"\boxed{5}"),
    (r"\frac{14}{3}\text{ square units}", r"$\frac{14}{3}$", r"$\frac{13}{3}$", r"\boxed{14/3}"),
    # Times and ratios.
    ("12:00", r"\boxed{12:00}", r"\boxed{12:30}", "The answer is 12:00."),
    (
        r"3:30 \text{ p.m.}",
        r"\boxed{3:30 \text{ p.m.}}",
        r"\boxed{3:30 \text{ a.m.}}",
        "Answer: 3:30 PM",
    ),
    ("2:3", r"The ratio is $2:3$.", r"The ratio is $3:2$.", r"\boxed{2 : 3}"),
    # Intervals, sets, tuples, lists.
    ("[-2,7]", r"\boxed{[-2,7]}", r"\boxed{(-2,7]}", r"$x \in [-2, 7]$"),
    (r"(2,\infty)", r"\boxed{(2,\infty)}", r"\boxed{[2,\infty)}", r"$\left(2, \infty\right)$"),
    (
        r"(-\infty,2)\cup(3,\infty)",
        r"$(-\infty,2)\cup(3,\infty)$",
        r"$(-\infty,2)\cup(4,\infty)$",
        r"$(3,\infty) \cup (-\infty,2)$",
    ),
    (r"[1,2)", r"$[1,2)$", r"$[1,2]$", r"The answer is $[1, 2)$."),
    (r"\{1,2,3\}", r"$\{1,2,3\}$", r"$\{1,2,4\}$", r"$\{3,2,1\}$"),
    ("1,2,3", r"\boxed{1,2,3}", r"\boxed{1,2}", r"\boxed{3}, \boxed{2} and \boxed{1}"),
    ("3, -3", r"\boxed{3, -3}", r"\boxed{3}", r"The answer is $-3$ and $3$."),
    (
        r"\left( 3, \frac{\pi}{2} \right)",
        r"\boxed{\left( 3, \frac{\pi}{2} \right)}",
        r"\boxed{\left( \frac{\pi}{2}, 3 \right)}",
        r"\boxed{(3, \pi/2)}",
    ),
    ("(1,-2,4)", r"\boxed{(1,-2,4)}", r"\boxed{(1,4,-2)}", r"$(1, -2, 4)$"),
    (
        r"1 \pm \sqrt{2}",
        r"\boxed{1 \pm \sqrt{2}}",
        r"\boxed{2 \pm \sqrt{2}}",
        r"\boxed{1+\sqrt2, 1-\sqrt2}",
    ),
    (r"\emptyset", r"\boxed{\emptyset}", r"\boxed{0}", r"$\emptyset$"),
    (r"\varnothing", r"\boxed{\varnothing}", r"\boxed{0}", r"\boxed{\emptyset}"),
    (r"\infty", r"$\infty$", r"$-\infty$", r"\boxed{\infty}"),
    # Matrices and vectors.
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}",
        r"\boxed{\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}}",
        r"$\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}$",
    ),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
        r"$\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}$",
        r"$\begin{pmatrix} 1/3 \\ 2/3 \end{pmatrix}$",
        r"\boxed{\begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}}",
    ),
    # Polynomials, equations, inequalities.
    ("x^2+1", "$1+x^2$", "$x^2-1$", r"\boxed{x^2 + 1}"),
    ("(x-2)(x+3)", r"\boxed{(x-2)(x+3)}", r"\boxed{(x+2)(x-3)}", r"$x^2+x-6$"),
    (r"\frac{3}{4}x + 2", r"$\frac34 x + 2$", r"$\frac34 x - 2$", r"$0.75x+2$"),
    ("p - q", "$p-q$", "$q-p$", r"\boxed{-q+p}"),
    ("2x", r"\boxed{2x}", r"\boxed{2}", r"$x + x$"),
    ("x=5", r"$x=5$", r"$x=6$", r"\boxed{5}"),
    ("5", "$x=5$", "$x=-5$", "The answer is x = 5."),
    ("y = 2x + 3", r"\boxed{y = 2x+3}", r"\boxed{y = 3x+2}", r"$y - 3 = 2x$"),
    ("x=1, y=2", r"\boxed{x=1, y=2}", r"\boxed{x=2, y=1}", r"$x=1$ and $y=2$"),
    ("x < 3", r"\boxed{x<3}", r"\boxed{x>3}", r"$3 > x$"),
    ("k", "$k$", "$m$", r"\boxed{k}"),
    # Numbers to a base.
    ("2516_8", r"\boxed{2516_8}", r"\boxed{2516_7}", r"\boxed{2516}"),
    ("1010_2", r"$1010_{2}$", r"$1011_{2}$", r"\boxed{1010_2}"),
    # Words.
    (r"\text{east}", r"\boxed{\text{east}}", r"\boxed{\text{west}}", "The answer is east."),
    (
        r"\text{Evelyn}",
        r"\boxed{\text{Evelyn}}",
        r"\boxed{\text{Briana}}",
        "The student is Evelyn.",
    ),
    ("even", r"\boxed{\text{even}}", r"\boxed{\text{odd}}", "So the function is even."),
    ("ellipse", "ellipse", "hyperbola", r"Answer: an ellipse."),
    ("Yes", "Yes", "No", "The answer is yes."),
    (r"\text{No solution}", r"\boxed{\text{no solution}}", r"\boxed{1}", "There is no solution."),
    # Choices.
    ("B", "B", "C", "So the answer is B"),
    ("(C)", "(C)", "(D)", r"\boxed{C}"),
    (r"\text{(D)}", r"\boxed{\text{(D)}}", r"\boxed{\text{(E)}}", "The correct option is D."),
    ("A", "A) 42", "B) 42", "**Answer: (A)**"),
    ("E", "Answer: E", "Answer: D", r"the answer is $\textbf{(E)}$."),
    (
        "C",
        r"The answer is \boxed{\text{C. } 12}",
        "The answer is B, not C? No, answer: B",
        "(C) 12",
    ),
]

# {0} is the answer; {1} and {2} are not.
CHOICES = [
    "The answer is {0} because x > 2.",
    "Option {0} is correct.",
    "So {0} is correct.",
    "{0} is the correct choice.",
    "{0} is right.",
    "The answer is {0} rather than {1}.",
    "The answer is {0} as {1} is impossible.",
    "The best answer is {0} instead of {1}",
    "It must be {0} because {1} and {2} are too small",
    "**Answer: {0}**",
    "**Answer:** {0}",
    "The correct option is ({0}).",
    "{0}. because x > 2",
    "I think the answer is {0}",
    "{0}) 12",
    "Answer: {0} is right",
    "not {1} but {0}",
    "The answer is not {1} but {0}.",
    "The answer is not ({1}) but ({0}) because x > 2.",
    "The answer is option {0}.",
    "The correct answer is choice ({0}), since {1} is too big.",
    "I would go with {0} since the others fail.",
    "I choose {0}.",
    "Therefore, {0}.",
    "So it's {0}.",
    "It is {0}, not {1}.",
    "The answer is {0}, not {1}.",
    "The answer isn't {1}, it's {0}.",
    "{1} is wrong, so the answer is {0}",
    "{1} and {2} are wrong, so {0} is right",
    "Since {1} and {2} are too small, it must be {0}.",
    "({1}) and ({2}) are wrong, so ({0})",
    "{0}",
    "({0})",
    "{0}.",
    "{0}:",
    "Answer: {0}.",
    "Answer: ({0}) 12",
    "Final answer: {0}\n",
    "#### {0}",
    r"\boxed{{{0}}}",
    r"\boxed{{\text{{{0}}}}}",
    r"\boxed{{\text{{Option {0}}}}}",
    r"$\boxed{{\textbf{{({0})}}\ 12}}$",
    r"The answer is $\textbf{{({0})}}$.",
    "The answer is:\n\n({0}) Paris",
    'The answer is "{0}".',
    "Answer: [{0}]",
    "Answer: `{0}`",
    "<answer>{0}</answer>",
    "{1}) 1\n{0}) 2\n{2}) 3\n\nThe value is 2, so {0}.",
    "{0}) 1\n{1}) 2\n{2}) 3\n\nSo {0} is correct.",
    "{0}) 1\n{1}) 2\n{2}) 3\n\nAnswer: {0}",
    "Options {1} and {2} are too small, which leaves {0}.",
    "The answer is {0} and {1} is wrong.",
    "The answer is {0}, {1} is impossible.",
    "I first thought {1}. But since {1} is too small, it must be {0}.",
    "We know that since {1} is small, the answer is {0}.",
    "The answer is 12, which is {0}.",
    "The answer is {0}: 12",
    "The answer would be {0}",
    "{0} because x > 2",
    "{0} - Paris",
    "Let me think. {0} is the best answer, I believe.",
    "I'd pick {0} over the rest.",
    "The right choice here is {0}.",
    "Answer {0} is correct.",
    "The answer must be {0} since {1} is impossible.",
    "Answer: I choose {0}.",
    "The answer is {0} because option {1} is 3.5 and {2} is 4.",
    "Thus, the correct answer is {0}.",
    "{0} is the answer.",
    "Choice {0} fits best.",
    "{1} can't be right, {0} is.",
    "We can rule out {1} and {2}, so {0}.",
    "It can't be {1}. It has to be {0}.",
    "The answer is definitely {0}!",
    "The answer is {0} (since {1} is too large)",
    "Of the options, {0} is the only correct one.",
    "Answer: {0}, because {1} and {2} are too small.",
    "The answer is therefore {0}.",
    "My answer: {0}",
    "The answer: ({0})",
    "Neither {1} nor {2} works, so the answer is {0}.",
    "the statement in {0} is correct",
    "{0} is correct because {1} violates the rule.",
    "Looking at the options, {1} is too low and {2} is too high. The answer is {0}.",
    "Based on this, {0} is the most accurate.",
    "Hence the correct option: {0}",
    "Hence, option {0}.",
    "ANSWER: {0}",
    "The answer is **{0}** (12 m).",
    "**{0}**",
    "**{0}.** 12",
    "{0}: Paris",
    "Correct answer: {0}",
    "The correct answer is {0}: Paris.",
    r"The final answer is $\boxed{{{0}}}$.",
    "I believe {0} is right, because {1} and {2} fail.",
    "Only {0} works.",
    "{0} works, {1} doesn't.",
    "So the answer should be {0}, as {1} can't be true.",
    "My choice: {0}.",
    "It's option {0}, I think.",
    "The option is {0} since {1} has a typo.",
    "Between {1} and {0}, {0} is better, so the answer is {0}.",
    "Out of {0}, {1} and {2}, the correct one is {0}.",
    "Answer is {0}.",
    "answer: {0}",
    "Ans: {0}",
    "ans. {0}",
    "The correct letter is {0}.",
    "Let us see. Statement {1} is false. Statement {0} is true. So the answer is {0}.",
    "Option {1} is not right because it is 3. Option {0} is right.",
    "I'm leaning towards {0}.",
    "Since x > 2, {0} is the right answer.",
    "Since x > 2, the only possible option is {0}.",
    "Given this, the answer has to be {0}.",
    "The answer is most likely {0}",
    "The answer is none of {1} or {2}; it is {0}.",
    "The answer is {0}. {1} is wrong because x.",
    "The answer is {0}. {1} would be 5.",
    "{0}\n\nBecause {1} is too small.",
    "The answer is {0}\nbecause {1} is too small.",
    "Choose {0}",
    "(Answer: {0})",
    "The answer is letter {0}",
    "The answer is {0}, which is 12.",
    "Answer - {0}",
    "The answer is {0}), 12",
    "So, {0} is the answer, and {1} is not.",
    "The solution is {0}.",
    "This corresponds to option {0}.",
    "This matches choice ({0}).",
    "which is answer choice {0}.",
    "Thus {0} must be true.",
    "The correct answer is actually {0}, since {1} ignores friction.",
    "{1}? No. {0}? Yes. So {0}.",
    "Therefore the answer is not {1}, but {0}, because x",
]


def verdict(completion, gold):
    score = verifiers.math_verify("", completion, {"answer": gold})
    return score.value if score.valid else score.reason


@pytest.mark.parametrize(("gold", "right", "wrong", "reworded"), GOLDS, ids=[g for g, *_ in GOLDS])
def test_golds(gold, right, wrong, reworded):
    assert [verdict(text, gold) for text in (right, wrong, reworded)] == [1, 0, 1]
    # The gold itself, in the forms that completions have.
    bare = gold.rpartition("####")[2].strip()
    for text in (
        gold,
        f"\\boxed{{{bare}}}",
        f"Hmm, 17.\nThe answer is $\\boxed{{{bare}}}$.",
        f"Answer: {bare}",
    ):
        assert verdict(text, gold) == 1, text
    for text in ("", "no idea", r"\boxed{}", r"$\frac{$", "123454321"):
        assert verdict(text, gold) == 0, text


@pytest.mark.parametrize(
    ("completion", "gold", "value"),
    [
        # The last box counts, whatever stood in earlier ones.
        (r"\boxed{4}. Hmm. \boxed{3}", "3", 1),
        (r"\boxed{3}. Hmm. \boxed{4}", "3", 0),
        (r"\boxed{3} or so, then \boxed{4}", "3", 0),
        (r"answer: \fbox{42}", "42", 1),
        (r"\fbox{\frac{1}{2}}", "0.5", 1),
        (r"\boxed{\text{hm}} so 3", "3", 0),
        # Without a box, the answer is what follows the word.
        ("The answer is 7, because 3 + 4 = 7 and 4 = 4.", "7", 1),
        ("4 of 9 say that the answer is 7.", "4", 0),
        ("$3$ and $4$", r"\{3,4\}", 1),
        ("$3$, then $4$", "4", 1),
        ("x = 3\n\nx = 4", "4", 1),
        # Exactness.
        ("9007199254740993", "9007199254740992", 0),
        ("0.30000001", "0.3", 0),
        (r"\boxed{12345678.5}", "12345678", 0),
        (r"\boxed{1234567.9}", "1234567", 0),
        ("It costs 1000000.5", "1000000", 0),
        ("8388608.5", "2^{23}", 0),
        ("100000000000000000000.5", "10^{20}", 0),
        (r"\boxed{(1000000.5, 2)}", "(1000000, 2)", 0),
        ("1000000.5", "x=1000000", 0),
        ("1234567.5%", r"1234567\%", 0),
        ("0.3000001", r"\frac{3}{10}", 0),
        ("3.141594", r"\pi", 0),
        ("3.141593", r"\pi", 1),
        (r"$3.333333\pi$", r"\frac{10}{3}\pi", 1),
        ("0.333333 meters", "1/3 meters", 1),
        ("33.3333%", r"33\frac{1}{3}\%", 1),
        ("1234567.333", r"\frac{3703702}{3}", 1),
        ("1234567.4", r"\frac{3703702}{3}", 0),
        ("0.5/3", "166667/1000000", 0),
        ("The answer is 3 rather than 4", "3", 1),
        ("The answer is 3 instead of 4", "3", 1),
        # The imaginary unit.
        (r"$e^{i\pi}$", "-1", 1),
        ("-1", r"e^{i\pi}", 1),
        ("$i^2$", "-1", 1),
        ("2i", "3i", 0),
        (r"$2^{1000}$", r"2^{1000}+1", 0),
        (r"$\frac{22}{7}$", r"\pi", 0),
        (r"\boxed{2^{2^{100}}}", "3", 0),
        ("9**9**9**9", "3", 0),
        (r"\boxed{9^{9^{9^{9}}}}", "3", 0),
        ("There are 3 apples and 4 pears.", "4", 1),
        ("It is 10:15 a.m.", "10:15", 1),
        ("1,500,000", "1.5 million", 1),
        ("1.5", "1.5 million", 0),
        ("12 m/s", "12", 1),
        (r"$(0.5, 1)$", r"\left(\frac{1}{2}, 1\right)", 1),
        ("0.5", r"\frac{\sqrt{1}}{2}", 1),
        ("0.7071068", r"\frac{\sqrt{2}}{2}", 1),
        ("0.7071", r"\frac{\sqrt{2}}{2}", 0),
        (r"\boxed{0.5}", r"50\%", 1),
        ("<answer>3</answer> or 4", "3", 1),
        ("<answer>B</answer>", "B", 1),
        (r"$\boxed{\textbf{(A)}\ 12}$", "A", 1),
        ("I think it's B.", "B", 1),
        ("B. Paris", "B", 1),
        (r"$3.14159265$", r"\pi", 1),
        # Other spellings, and answers in prose.
        ("√2", r"\sqrt{2}", 1),
        ("½", "0.5", 1),
        ("x ≤ 3", r"x \le 3", 1),
        ("pi/2", r"\frac{\pi}{2}", 1),
        ("x**2+1", "x^2+1", 1),
        ("2*sqrt(2)", r"2\sqrt{2}", 1),
        ("-1 < x < 3", "(-1,3)", 1),
        ("The solutions are 2 and 3.", "2,3", 1),
        ("The point is (2, -3).", "(2,-3)", 1),
        ("She earns $5 per hour, so $40 in total.", "40", 1),
        ("12 or 13", "12", 0),
        ("1 hour 40 minutes", "100", 0),
        ("The answer is 3.\nThe answer is 4.", "4", 1),
        ("Yes, it is.", "Yes", 1),
        ("The answer is not (A) but (B).", "B", 1),
        ("(A) and (B) are wrong, so (D)", "D", 1),
        ("Let A be a set.", "A", 0),
        # Words that say the opposite.
        ("It is not even", "even", 0),
        ("The answer is not B", "C", 0),
    ],
)
def test_which_part_counts_and_how_exactly(completion, gold, value):
    assert verdict(completion, gold) == value


@pytest.mark.parametrize("form", CHOICES)
def test_a_choice_is_read_from_a_sentence_whatever_its_letter(form):
    for letters in itertools.permutations("ABD"):
        completion = form.format(*letters)
        assert [g for g in "ABCD" if verdict(completion, g)] == [letters[0]], completion


@pytest.mark.parametrize(
    "completion",
    [
        "The answer is B or C.",
        "The answer is either A or B.",
        r"\boxed{A}, \boxed{B}",
        r"\boxed{A \text{ or } B}",
        "A and B are wrong",
        "The answer is not B",
        "Let A be a set.",
        "A triangle has three sides.",
        "Answer: A triangle.",
        "Answer: I am not sure",
        "",
    ],
)
def test_no_choice_is_read_where_none_is_made(completion):
    assert not any(verdict(completion, gold) for gold in "ABCDI")


def test_where_a_false_statement_is_asked_for_the_rejected_letter_is_the_answer():
    assert [g for g in "ABCD" if verdict("Option A is incorrect.", g)] == ["A"]


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**9 - 1))
def test_an_integer_is_no_rounded_value(whole, digits):
    decimal = f"{whole}.{digits:09d}"
    for completion in (decimal, f"\\boxed{{{decimal}}}", f"It costs {decimal}"):
        assert verdict(completion, str(whole)) == 0
    assert verdict(str(whole), decimal) == 0
    assert verdict(f"{whole}.000", str(whole)) == 1


@given(st.integers(1, 10**6), st.sampled_from([3, 7, 9, 11, 13, 64]), st.integers(6, 12), st.data())
def test_a_fraction_is_rounded_to_the_last_digit(above, below, places, data):
    exact = Fraction(above, below) + 1  # 1/64 has six decimals, the others have no end
    scaled = exact * 10**places
    off = data.draw(st.integers(-3, 3))
    with localcontext(Context(prec=60)):  # a task of reasoning-gym makes the common one coarse
        decimal = Decimal(round(scaled) + off).scaleb(-places)
    gold = f"{exact.numerator}/{exact.denominator}"
    near = abs(Fraction(decimal) - exact) * 10**places <= Fraction(1, 2)
    cut = Fraction(decimal) * 10**places == int(scaled)
    if "." in f"{decimal:f}" and f"{decimal:f}"[-1] != "0" and exact.denominator > 1:
        assert verdict(f"{decimal:f}", gold) == (near or cut)


@pytest.mark.parametrize(
    "gold",
    [
        "",
        "  ",
        "$$",
        r"\boxed{}",
        r"\frac{1}{0}",
        r"\frac{",
        r"\{x|x>2\}",
        r"3\text{ cm by }4\text{ cm}",
    ],
)
def test_golds_that_cannot_be_read_are_invalid(gold):
    assert "cannot be read as mathematics" in verdict("3", gold)


def test_what_is_joined():
    assert mathematics.candidates(r"\boxed{1}, \boxed{2} and \boxed{3}") == ["1, 2, 3"]
    assert mathematics.candidates(r"so \boxed{\frac{1}{2}}") == [r"\frac{1}{2}"]
    assert mathematics.candidates("$1$ or $2$")[0] == "1, 2"


@pytest.mark.parametrize(
    "text",
    ["(" * 5000, "$" * 5000, r"\boxed{" * 2000, "1+" * 3000 + "1", "x" * 20000, r"\frac{" * 500]
    + ["9" * 20000, "[" * 3000, " ".join(map(str, range(5000))), "\ud800", "a=" * 3000],
    ids=lambda text: text[:8].encode("ascii", "replace").decode(),
)
def test_long_nonsense_is_read_before_a_deadline(text):
    # A minute each, where the library was given all of it.
    assert verdict(text, "3") == 0


@pytest.mark.parametrize(
    "part", ["A, ", "not A or ", "so because ", "answer: ", "( ", "A is ", " "]
)
def test_long_texts_without_one_choice_are_read_before_a_deadline(part):
    assert verdict(part * 5000, "C") == 0


def test_the_page_says_what_the_verifier_does():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    table = page.split("| answer | equals | does not equal |\n")[1].split("\n\n")[0]

    def written(cell):
        return [code or quoted for code, quoted in re.findall(r"`([^`]+)`|\"([^\"]+)\"", cell)]

    rows = [row.strip("|").split(" | ") for row in table.splitlines()[1:]]
    assert len(rows) == 13
    for answers, equal, different in rows:
        for answer in written(answers):
            for text in written(equal):
                assert verdict(f"${text}$" if "\\" in text else text, answer) == 1, (text, answer)
            for text in written(different):
                assert verdict(f"${text}$" if "\\" in text else text, answer) == 0, (text, answer)


def test_every_reward_is_on_the_page():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    table = page.split("| reward | gives")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(verifiers.NAMES)
