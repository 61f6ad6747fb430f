r"""Is a right answer graded right, and a wrong one wrong? Tables of answers in all the forms that models write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="needs math-verify (extra verify)")

from prmbench.verification import extraction, latex
from prmbench.verification.answer_region import answer_region
from prmbench.verification.canonical import canonical_answer, vote
from prmbench.verification.expressions import UnreadableError, same_expression
from prmbench.verification.grading import grade, same_answer
from prmbench.verification.numbers import read_number
from prmbench.verification.quantities import read_quantity
from prmbench.verification.verifiers import Claim, Verifier

RIGHT = [
    ("4", "\\boxed{\\#4}"),
    ("\\frac{dx}{dt}=kx-a", "\\boxed{(d x)/(d t) = k x - a}"),
    ("\\frac{dx}{dt}=kx-a", "\\boxed{dx/dt = kx - a}"),
    ("\\alpha", "\\boxed{\\mathbf{\\alpha}}"),
    ("1024-256 \\pi", "\\boxed{\\mathbf{1024-256 \\pi}}"),
    ("\\frac{1}{m} t", "\\boxed{(1)/(m) t}"),
    ("\\frac{1}{2} x", "\\boxed{1/2 x}"),
    ("x^2/4 + y^2/3 = 1", "\\boxed{x^2/16 + y^2/12 = 1/4}"),
    ("1e16", "\\boxed{10000000000000000}"),
    ("0.00001", "\\boxed{10^{-5}}"),
    ("1e-05", "\\boxed{0.00001}"),
    ("6.02e23", "\\boxed{6.02\\times 10^{23}}"),
    ("12345678901234567890", "\\boxed{12345678901234567890}"),
    ("3.0e8", "\\boxed{3 \\cdot 10^8}"),
    ("2.5E-3", "\\boxed{\\frac{1}{400}}"),
    ("-\\frac{7}{2}", "\\boxed{-3\\frac{1}{2}}"),
    ("-3 1/2", "\\boxed{-\\frac72}"),
    ("5/2", "\\boxed{2 \\frac{1}{2}}"),
    ("[1,3)", "\\boxed{1\\le x<3}"),
    ("x>2", "\\boxed{(2,\\infty)}"),
    ("(-\\infty,2]", "\\boxed{x \\le 2}"),
    ("x<1 \\text{ or } x>3", "\\boxed{(-\\infty,1)\\cup(3,\\infty)}"),
    ("x\\neq 2", "\\boxed{(-\\infty,2)\\cup(2,\\infty)}"),
    ("\\mathbb{R}\\setminus\\{2\\}", "\\boxed{x\\ne2}"),
    ("-3<x<3", "\\boxed{|x|<3}"),
    ("-1 < t < 1", "\\boxed{(-1,1)}"),
    ("C", "\\boxed{\\textbf{(C) } 12}"),
    ("12", "\\boxed{\\textbf{(C) } 12}"),
    ("B", "Answer: B"),
    ("B", "Answer: (B)"),
    ("B", "The correct answer is **B**."),
    ("B", "The answer is B) 7"),
    ("A", "\\boxed{\\text{(A) } 5}"),
    ("D", "\\boxed{\\mathbf{(D)}}"),
    ("(E)", "\\boxed{E}"),
    ("C", "\\boxed{\\text{C. 15}}"),
    ("E", "\\boxed{(e)}"),
    ("ABC", "\\boxed{ABC}"),
    ("2xy", "\\boxed{2yx}"),
    ("101_2", "\\boxed{101_{2}}"),
    ("234_5", "\\boxed{234_{\\text{five}}}"),
    ("9:30", "\\boxed{9:30}"),
    ("2:30 PM", "\\boxed{2:30\\text{ p.m.}}"),
    ("5:4", "\\boxed{5 : 4}"),
    ("5:4", "\\boxed{\\frac54}"),
    ("\\frac{1}{10^{30}}", "\\boxed{10^{-30}}"),
    ("y=x^2", "\\boxed{y-x^2=0}"),
    ("2x+4y=6", "\\boxed{x+2y=3}"),
    ("y = 3x - 2", "\\boxed{3x-y=2}"),
    ("xy=1", "\\boxed{y=\\frac1x}"),
    ("(1,2)", "\\boxed{(1,2)}"),
    ("\\{1,2,3\\}", "\\boxed{\\{3,2,1\\}}"),
    ("(0,0)", "\\boxed{(0, 0)}"),
    ("5 apples", "\\boxed{5}"),
    ("5", "\\boxed{5 \\text{ apples}}"),
    ("3 \\text{ red}, 4 \\text{ blue}", "\\boxed{4 \\text{ blue}, 3 \\text{ red}}"),
    ("18", "\\boxed{\\$18}"),
    ("18", "\\boxed{18 \\text{ dollars}}"),
    ("18.00", "\\boxed{\\$18}"),
    ("18", "The answer is $18."),
    ("18", "The answer is \\$18.00."),
    ("1,800", "\\boxed{\\$1800}"),
    ("60", "\\boxed{60^\\circ}"),
    ("60", "\\boxed{60 \\degree}"),
    ("60", "\\boxed{60 degrees}"),
    ("60\\text{ mph}", "\\boxed{60}"),
    ("25", "\\boxed{25 \\text{ cm}^2}"),
    ("25", "\\boxed{25 cm^2}"),
    ("25", "\\boxed{25\\, \\mathrm{cm}^2}"),
    ("9.8", "\\boxed{9.8 m/s^2}"),
    ("9.8", "\\boxed{9.8\\ \\mathrm{m/s^2}}"),
    ("3\\pi", "\\boxed{3\\pi \\text{ cm}}"),
    ("2\\sqrt{3}", "\\boxed{2\\sqrt{3}\\text{ units}}"),
    ("1234567", "\\boxed{1\\,234\\,567}"),
    ("1234567", "\\boxed{1 234 567}"),
    ("1234567", "\\boxed{1,234,567.}"),
    ("1000000", "\\boxed{1\u2009000\u2009000}"),
    ("0.5", "\\boxed{.50}"),
    ("-5", "\\boxed{−5}"),
    ("-5", "\\boxed{－5}"),
    ("\\frac34", "\\boxed{¾}"),
    ("1\\frac12", "\\boxed{1½}"),
    ("\\sqrt{3}/2", "\\boxed{√3/2}"),
    ("x^2", "\\boxed{x²}"),
    ("10^{10}", "\\boxed{10¹⁰}"),
    ("\\infty", "\\boxed{+∞}"),
    ("\\pi", "\\boxed{π}"),
    ("2\\pi r", "\\boxed{2πr}"),
    ("\\theta", "\\boxed{θ}"),
    ("3\\cdot 4", "\\boxed{12}"),
    ("90", "\\boxed{90˚}"),
    ("(-1,1)", "\\boxed{（−1，1）}"),
    ("x \\ge 3", "\\boxed{x≥3}"),
    ("\\{1,2\\}", "\\boxed{{1, 2}}"),
    ("42", "<think>bla</think><answer>\\boxed{42}</answer>"),
    ("42", "<answer>The answer is 42</answer>"),
    ("42", "<think>\\boxed{41}</think>\n\n**Final Answer**\n\\boxed{42}"),
    ("42", "<answer>41</answer><answer>42</answer>"),
    ("42", "[THINK]x \\boxed{1}[/THINK]42"),
    ("3,5", "x=\\boxed{3} and y=\\boxed{5}"),
    ("3,5", "\\boxed{3} or \\boxed{5}"),
    ("5", "We had \\boxed{3}, but it is \\boxed{5}"),
    ("#### 72", "\\boxed{72}"),
    ("He sold 24.\nTotal 48+24 = <<48+24=72>>72\n#### 72", "The answer is 72."),
    ("She has 10 apples.\n#### 1,080", "\\boxed{1080}"),
    ("So the answer is \\boxed{\\frac12}", "\\boxed{0.5}"),
    ("Therefore, the final answer is 12.", "\\boxed{12}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{bmatrix}1\\\\2\\end{bmatrix}}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{(1,2)}"),
    (
        "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
        "\\boxed{\\left[\\begin{array}{cc}1 & 2\\\\ 3 & 4\\end{array}\\right]}",
    ),
    ("\\begin{pmatrix}0.5\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}\\frac{1}{2}\\\\ \\frac42\\end{pmatrix}}"),
    ("10\\%", "\\boxed{0.1}"),
    ("20", "\\boxed{20 percent}"),
    ("20\\%", "\\boxed{20\\,\\%}"),
    ("Paris", "The answer is Paris."),
    ("yes", "Answer: Yes."),
    ("no solution", "\\boxed{\\text{No solution}}"),
    ("\\text{Friday}", "\\boxed{Friday}"),
    ("5", "Let x be the number. So x = 5."),
    ("8", "The answer is 7. No, the answer is 8."),
    ("8", "Final answer:\n\n$$8$$"),
    ("\\frac{3}{4}", "The final answer is $\\frac{3}{4}$. I hope it is correct."),
    ("2x+3", "The answer is 2x+3."),
    ("2,3", "The answer is 2 and 3."),
    ("x=2", "\\boxed{2}"),
    ("2", "\\boxed{x = 2 \\text{ cm}}"),
    ("\\frac{1}{x+1}", "\\boxed{(x+1)^{-1}}"),
    ("\\sqrt{x^2}", "\\boxed{|x|}"),
    ("\\sin^2 x+\\cos^2 x", "\\boxed{1}"),
    ("\\log_{10} 100", "\\boxed{2}"),
    ("\\ln e", "\\boxed{1}"),
    ("\\binom{5}{2}", "\\boxed{10}"),
    ("5!", "\\boxed{120}"),
    ("i", "\\boxed{\\sqrt{-1}}"),
    ("1+2i", "\\boxed{2i+1}"),
    ("\\sqrt[3]{8}", "\\boxed{2}"),
    ("e^2", "\\boxed{7.389056}"),
    ("\\frac{\\pi}{4}", "\\boxed{0.785398}"),
    ("0", "\\boxed{-0}"),
    ("10", "\\boxed{10,}"),
    ("(2,3)", "\\boxed{x=2, y=3}"),
    ("a=1,b=2", "\\boxed{b=2, a=1}"),
    ("\\frac{2}{4}", "\\boxed{\\frac{1}{2}}"),
    ("1/2", "\\boxed{\\frac{1}{2}\\ }"),
    ("\\$5.50", "\\boxed{5.5}"),
    ("100", "\\boxed{\\text{\\$}100}"),
    ("4", "\\boxed{\\textbf{4}}"),
    ("4", "\\boxed{{\\bf 4}}"),
    ("4", "\\boxed{4\\!}"),
    ("1:2:3", "\\boxed{1:2:3}"),
    ("2024", "\\boxed{2,024}"),
    ("3.14", "\\boxed{3,14}"),
    ("\\pi R^2", "\\boxed{\\pi R^{2}}"),
    ("E_1+E_2", "\\boxed{E_2+E_1}"),
    ("6", "\\boxed{2(3)}"),
    ("1500", "\\boxed{1.5e3 + 0}"),
    ("\\sum_{i=1}^{4} i", "\\boxed{10}"),
    ("1, 1+x, 1-x", "\\boxed{1 \\pm x, 1}"),
    ("1+x, 1-x", "\\boxed{1\\pm x}"),
    ("x<0 or x=1", "\\boxed{(-\\infty,0)\\cup\\{1\\}}"),
    ("\\text{3 and 5}", "\\boxed{3, 5}"),
    ("3,5", "\\boxed{\\text{3 or 5}}"),
    ("[[1,2],[3,4]]", "\\boxed{\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}}"),
    ("((1,2))", "\\boxed{(1,2)}"),
    ("101_2", "\\boxed{(101)_2}"),
    ("101_2", "\\boxed{101_{(2)}}"),
    ("f(x)=x^2", "\\boxed{f(n)=n^2}"),
    ("cats", "\\boxed{cat}"),
    ("5 to 3", "\\boxed{5:3}"),
    ("12", "\\boxed{\\large 12}"),
    ("12", "\\boxed{\\colorbox{yellow}{12}}"),
    ("1234", "\\boxed{1{\\,}234}"),
    ("1234", "\\boxed{1'234}"),
    ("x^2", "\\boxed{x**2}"),
    ("2^{10}", "\\boxed{2**10}"),
    ("f'(x)", "\\boxed{f^\\prime(x)}"),
    ("10", "\\boxed{{5 \\choose 2}}"),
    ("\\sqrt{2}", "\\boxed{sqrt(2)}"),
    ("2", "\\boxed{\\lg 100}"),
    ("\\arcsin(10/13)", "\\boxed{np.arcsin(10/13)}"),
    ("\\frac{1}{2}", "\\boxed{¹⁄₂}"),
    ("\\frac{1}{2}", "\\boxed{1⁄2}"),
    ("5", "\\boxed{𝟓}"),
    ("x", "\\boxed{𝑥}"),
    ("\\mathbb{R}\\setminus\\{1\\}", "\\boxed{\\mathbb{R}-\\{1\\}}"),
    ("90", "\\boxed{90^o}"),
    ("1,2", "\\boxed{1 \\\\ 2}"),
    ("\\text{all real numbers}", "\\boxed{(-\\infty,\\infty)}"),
    ("\\mathbb R", "\\boxed{\\text{all real values of } x}"),
    ("x=1, y=2", "\\boxed{(1,2)}"),
    ("y=2, x=1", "\\boxed{(1,2)}"),
    ("1,2", "\\boxed{(1,2)}"),
    ("12 \\text{ minutes}", "\\boxed{\\text{12 minutes}}"),
    ("12", "\\boxed{\\text{12 min}}"),
    ("12", "\\boxed{\\text{Total: 12}}"),
    ("12", "\\boxed{\\text{Answer: 12}}"),
    ("12 345", "\\boxed{12345}"),
    ("\\frac{AB}{CD}=\\frac12", "\\boxed{\\frac12}"),
    ("AB/CD = 3", "\\boxed{3}"),
    ("1000,2000", "\\boxed{1,000, 2,000}"),
    ("1,000, 2,000", "\\boxed{1000, 2000}"),
    ("3 n", "\\boxed{\\mathbf{3n}}"),
    ("2n", "\\boxed{\\mathbf{2 n}}"),
    ("x = \\frac{1}{2}", "\\boxed{\\therefore x = 0.5}"),
    ("\\begin{cases}x=1\\\\y=2\\end{cases}", "\\boxed{(1,2)}"),
    ("x=1,y=2", "\\boxed{\\begin{array}{l}x=1\\\\y=2\\end{array}}"),
    ("\\text{June 20}", "\\boxed{June 20}"),
    ("40\\text{ and }50", "\\boxed{40, 50}"),
    ("\\{1\\}", "\\boxed{1}"),
    ("0.1\\overline{6}", "\\boxed{\\frac16}"),
    ("\\frac13", "\\boxed{0.\\overline{3}}"),
    ("0.\\overline{12}", "\\boxed{\\frac{4}{33}}"),
    ("A^T", "\\boxed{A^{T}}"),
    ("A^\\top", "\\boxed{A^\\top}"),
    ("x^*", "\\boxed{x^{*}}"),
    ("L_{\\odot}", "\\boxed{L_\\odot}"),
    ("m_{\\max}", "\\boxed{m_{\\text{max}}}"),
    ("\\frac{dx}{dt}=kx", "\\boxed{\\frac{d x}{d t} = k x}"),
    ("\\frac{d^2y}{dx^2}+y=0", "\\boxed{\\frac{d^{2} y}{d x^{2}} = -y}"),
    ("\\frac{d}{dx}x^2", "\\boxed{2x}"),
    ("2", "\\boxed{x=2}"),
    ("5", "\\boxed{a+b=5}"),
    ("5", "\\boxed{10/2=5}"),
    ("3", "\\boxed{2+1=3}"),
    ("1,2", "\\boxed{x=1,2}"),
    ("\\lfloor n/2 \\rfloor", "\\boxed{\\lfloor n/2 \\rfloor}"),
    ("1.234567", "\\boxed{1.2345671}"),
    ("3.14159", "\\boxed{\\pi}"),
    ("e^T", "\\boxed{\\exp(T)}"),
    ("0.(3)", "\\boxed{1/3}"),
    ("P(A \\cap B)=0.2", "\\boxed{0.2}"),
    ("12:30", "\\boxed{12:30 PM}"),
    ("x \\equiv 3 \\pmod 5", "\\boxed{x\\equiv3\\pmod{5}}"),
    ("\\frac{dy}{dx}=3x^2", "\\boxed{3x^2}"),
    ("\\lceil n/2\\rceil", "\\boxed{\\lfloor (n+1)/2\\rfloor}"),
    ("7", "\\boxed{7 \\pmod{11}}"),
    ("\\frac13", "\\boxed{0.\\overline{3}}"),
    ("\\frac{41}{333}", "\\boxed{0.\\overline{123}}"),
    ("\\frac16", "\\boxed{0.1\\bar{6}}"),
    ("\\frac13", "\\boxed{0.333...}"),
    ("\\frac13", "\\boxed{0.\\dot3}"),
    ("0.(3)", "\\boxed{\\frac13}"),
    ("\\frac18", "\\boxed{2^-3}"),
    ("90", "\\boxed{\\mathbf{90^\\circ}}"),
    ("\\frac{\\sqrt3}{\\sin 20^\\circ}", "\\boxed{\\frac{\\sqrt{3}}{\\sin{20^{\\circ}}}}"),
    ("\\sin 60^\\circ", "\\boxed{\\frac{\\sqrt3}{2}}"),
    ("15", "\\boxed{5!!}"),
    ("(1,2,3)", "\\boxed{(1,2,3)^T}"),
    ("I^2R", "\\boxed{RI^2}"),
    ("v_{max}", "\\boxed{v_{\\max}}"),
    ("2bd", "\\boxed{2db}"),
    ("\\frac{1}{2}m\\bar v^2", "\\boxed{0.5m\\bar{v}^2}"),
    ("x \\equiv 2 \\pmod 5", "\\boxed{x\\equiv 7\\ (\\text{mod }5)}"),
    ("1", "\\boxed{7 \\bmod 3}"),
    ("2,000,000", "\\boxed{2 million}"),
    ("3 \\times 10^9", "\\boxed{\\$3\\text{ billion}}"),
    ("5", "\\boxed{\\text{five}}"),
    ("(3,4)", "\\boxed{x=3\\quad y=4}"),
    ("1,2", "\\boxed{x_1 = 2, x_2 = 1}"),
    ("\\emptyset", "\\boxed{\\text{no solution}}"),
    ("(42,\\infty)", "\\boxed{> 42}"),
    ("B", "The correct option is (B)."),
    ("B", "My choice: B"),
    ("5", "\\boxed{5\\ \\mu m}"),
    ("5", "\\boxed{5~\\mathrm{k\\Omega}}"),
    ("5", "\\boxed{\\text{Rs. }5}"),
    ("7", "The answer is 7.</s>"),
    ("7", "Answer: <b>7</b>"),
    ("6.6e-34", "\\boxed{6.6{\\times}10^{-34}}"),
    ("f^{-1}(x)=\\frac{x-1}{2}", "\\boxed{\\frac{x-1}{2}}"),
    ("2,4,6", "\\boxed{2, 4, \\& 6}"),
    ("5", "\\boxed{5^{\\text{th}}}"),
    ("\\ell", "\\boxed{ℓ}"),
    ("\\gcd(a,b)", "\\boxed{\\gcd(b, a)}"),
    ("\\frac{dy}{dx}=2y", "\\boxed{2y=\\frac{dy}{dx}}"),
    ("7 \\text{ p.m.}", "\\boxed{7 PM}"),
    ("Yes", "Yes, it is."),
    ("yes", "Answer: Yes, because 2 is even."),
    ("5", "**5** \u220e"),
    ("5", "\\boxed{\u202a5\u202c}"),
    ("5", "\\boxed{\\SI{5}{cm}}"),
    ("5", "\\boxed{5\\ \\mathrm{m\\,s^{-1}}}"),
    ("x''", "\\boxed{x\u2033}"),
    ("1,2,-2", "The solutions are \\(x = 1\\), \\(x = 2\\), and \\(x = -2\\)."),
    ("-2,-2", "\\(\\boxed{-2}\\) and \\(\\boxed{-2}\\)"),
    ("5", "\\boxed{5}, \\boxed{5}"),
    ("2k\\pi", "\\boxed{x = 2k\\pi \\text{ for } k \\in \\mathbb{Z}}"),
    ("x=\\frac{\\pi}{4}+k\\pi, k\\in\\mathbb{Z}", "\\boxed{\\frac{\\pi}{4}+\\pi k}"),
    ("12", "Answer: 12 (since $3\\cdot4 = 12$)"),
    ("1,2", "The solutions are x=1 and x=2."),
    ("5", "Combining these results:\n- the first digit is 3\n\nTherefore, the digit is **5**."),
    ("B", "Answer -> B"),
    ("B", "The answer is 'B'."),
]
WRONG = [
    ("7", "\\boxed{7 5 2}"),
    ("7", "\\boxed{#4}"),
    ("12", "\\boxed{1 2}"),
    ("1.2", "\\boxed{1, 2}"),
    ("1", "\\boxed{-1,-9}"),
    ("6.02e23", "\\boxed{6.03\\times 10^{23}}"),
    ("1.6e-19", "\\boxed{0}"),
    ("12345678901234567890", "\\boxed{12345678901234567891}"),
    ("5e3", "\\boxed{5e^3}"),
    ("2\\frac{1}{2}", "\\boxed{1}"),
    ("[1,3)", "\\boxed{1<x\\le3}"),
    ("x>2", "\\boxed{x\\ge 2}"),
    ("y<1", "\\boxed{x<1}"),
    ("C", "\\boxed{\\textbf{(D) } 12}"),
    ("A", "\\boxed{B}"),
    ("B", "The answer is A"),
    ("ABC", "\\boxed{BAC}"),
    ("listen", "\\boxed{silent}"),
    ("101_2", "\\boxed{101_3}"),
    ("101_2", "\\boxed{110_2}"),
    ("9:30", "\\boxed{9:03}"),
    ("12:00", "\\boxed{1:00}"),
    ("5:4", "\\boxed{4:5}"),
    ("\\frac{1}{3^{60}}", "\\boxed{\\frac{1}{3^{61}}}"),
    ("10^{-30}", "\\boxed{0}"),
    ("1/2004!", "\\boxed{1/2006!}"),
    ("x^2+1=0", "\\boxed{x^2+2=0}"),
    ("2x+4y=6", "\\boxed{x+2y=4}"),
    ("x=3", "\\boxed{y=3}"),
    ("(1,2)", "\\boxed{\\{1,2\\}}"),
    ("(1,2,3)", "\\boxed{(3,2,1)}"),
    ("\\{1,2\\}", "\\boxed{(1,2)}"),
    ("3 \\text{ red}, 4 \\text{ blue}", "\\boxed{4 \\text{ red}, 3 \\text{ blue}}"),
    ("5 north", "\\boxed{5 south}"),
    ("2x", "\\boxed{2}"),
    ("5x", "\\boxed{5}"),
    ("4t", "\\boxed{4}"),
    ("42", "<think>42</think>"),
    ("42", "<think>It is \\boxed{42}"),
    ("42", "\\boxed{41} no \\boxed{42"),
    ("42", "\\boxed{42} and then \\boxed{43}"),
    ("10\\%", "\\boxed{\\frac{1}{10}}"),
    ("10\\%", "\\boxed{1}"),
    ("7", "The answer isn't 7."),
    ("7", "The final answer is not 7 but 8."),
    ("2", "The answer is 2x+3."),
    ("2", "The answer is 2 and 3."),
    ("3", "The answer is between 3 and 4."),
    ("|x|", "\\boxed{x}"),
    ("1+2i", "\\boxed{1-2i}"),
    ("\\frac{\\pi}{4}", "\\boxed{0.79}"),
    ("0.333", "\\boxed{\\frac13}"),
    ("3", "\\boxed{3!}"),
    ("1", "\\boxed{-1}"),
    ("(2,3)", "\\boxed{x=3, y=2}"),
    ("\\text{A}", "\\boxed{B}"),
    ("June 20", "\\boxed{July 20}"),
    ("1:2:3", "\\boxed{3:2:1}"),
    ("R^2", "\\boxed{r^2}"),
    ("2E_1", "\\boxed{2E_2}"),
    ("2(3)", "\\boxed{5}"),
    ("10", "\\boxed{\\sum_{i=1}^{5} i}"),
    ("x<0 or x=1", "\\boxed{(-\\infty,0)}"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\boxed{[[1,2],[4,3]]}"),
    ("101_2", "\\boxed{(101)_{3}}"),
    ("n^2", "\\boxed{f(x)=x^2}"),
    ("f(x)=x^2", "\\boxed{f(n)=n^3}"),
    ("SSS", "\\boxed{SS}"),
    ("5:3", "\\boxed{3 to 5}"),
    ("x^3", "\\boxed{x**2}"),
    ("\\sqrt{3}", "\\boxed{sqrt(2)}"),
    ("y=2, x=1", "\\boxed{(2,1)}"),
    ("(1,2)", "\\boxed{[1,2]}"),
    ("1,2", "\\boxed{(2,1)}"),
    ("1,2", "\\boxed{[1,2]}"),
    ("teas", "\\boxed{east}"),
    ("3", "\\boxed{AB/CD=4}"),
    ("\\text{odd}", "\\boxed{\\text{even}}"),
    ("\\frac13", "\\boxed{0.\\overline{4}}"),
    ("A^T", "\\boxed{A}"),
    ("x^*", "\\boxed{x}"),
    ("m_{\\max}", "\\boxed{m_{\\min}}"),
    ("\\frac{dx}{dt}=kx", "\\boxed{\\frac{dx}{dt}=-kx}"),
    ("\\frac{\\partial u}{\\partial t}=k", "\\boxed{\\frac{\\partial u}{\\partial x}=k}"),
    ("4", "\\boxed{2x=4}"),
    ("2", "\\boxed{-x=2}"),
    ("x=1 or x=2", "\\boxed{y=1, 2}"),
    ("x=1 or x=2", "\\boxed{x=1,y=2}"),
    ("x=1,y=2", "\\boxed{x=1,2}"),
    ("\\lfloor\\sqrt{n-1}\\rfloor", "\\boxed{\\lfloor\\sqrt{n-1}\\rfloor^2}"),
    ("1.234567", "\\boxed{1.234568}"),
    ("\\overline{z}", "\\boxed{z}"),
    ("x \\equiv 3 \\pmod 5", "\\boxed{x \\equiv 2 \\pmod 5}"),
    ("\\lfloor\\frac{2n-1}{5}\\rfloor", "\\boxed{\\lfloor\\frac{2n-2}{5}\\rfloor}"),
    ("2^T", "\\boxed{2}"),
    ("m\\frac{dv}{dt}+bv=f", "\\boxed{w\\frac{dv}{dt}+bv=f}"),
    ("7 \\pmod{11}", "\\boxed{7 \\pmod{12}}"),
    ("2", "\\boxed{2^T}"),
    ("I^2R", "\\boxed{IR}"),
    ("0", "\\boxed{I_1-I_2}"),
    ("\\frac{dy}{dx}=2y", "\\boxed{\\frac{dy}{dx}=-2y}"),
    ("\\frac{dy}{dx}=2y", "\\boxed{\\frac{dx}{dy}=2y}"),
    ("\\gamma^2-1", "\\boxed{\\gamma^2-4}"),
    ("\\gamma m", "\\boxed{0.5772156649 m}"),
    ("|xy|", "\\boxed{xy}"),
    ("\\sqrt{a^2c^2}+b", "\\boxed{ac+b}"),
    ("16,3,1,1", "\\boxed{16,3,1}"),
    ("1,1,2", "\\boxed{1,2,2}"),
    ("0.\\overline{12}", "\\boxed{0.\\overline{21}}"),
    ("0.1\\overline{6}", "\\boxed{0.\\overline{16}}"),
    ("(5!)!", "\\boxed{5!!}"),
    ("v_{max}", "\\boxed{v_{min}}"),
    ("n\\equiv 1\\pmod 4", "\\boxed{n\\equiv 3\\pmod 4}"),
    ("n\\equiv 1\\pmod 4", "\\boxed{n\\equiv 1\\pmod 8}"),
    ("42", "\\boxed{42\\text{ million}}"),
    ("42", "The answer is 42 million."),
    ("42", "\\boxed{42 dozen}"),
    ("42", "\\boxed{\\neq 42}"),
    ("42", "\\boxed{> 42}"),
    ("7", "\\boxed{7\\text{ squared}}"),
    ("7", "\\boxed{7\\text{ halves}}"),
    ("7", "\\boxed{7\\text{ is not an answer}}"),
    ("7", "\\boxed{6.9999999}"),
    ("1", "\\boxed{0.999999999999}"),
    ("3.14159", "\\boxed{3.14158}"),
    ("7", "the answer cannot be 7"),
    ("7", "Answer: 7 × 10^3"),
    ("7", "Answer: 7 remainder 3"),
    ("C", "\\boxed{(C) \\text{ and } (D)}"),
    ("x", "\\boxed{\\bar x}"),
    ("\\dot x", "\\boxed{\\ddot x}"),
    ("\\sin 60^\\circ", "\\boxed{\\sin 60}"),
    ("\\gcd(a,b)", "\\boxed{\\gcd(a,c)}"),
    ("f(x)=x+22", "\\boxed{f(z)=x+22}"),
    ("|x-5|", "\\boxed{5-x}"),
    ("\\lfloor\\sqrt{n-1}\\rfloor", "\\boxed{\\lfloor\\frac{n}{2}\\rfloor}"),
    ("\\max(x,10)", "\\boxed{10}"),
    ("\\sqrt{(x-10)^2}", "\\boxed{10-x}"),
    ("5", "\\boxed{5\\text{ hundredths}}"),
    ("7\\text{ a.m.}", "\\boxed{7\\text{ p.m.}}"),
    ("yes", "No, yes would be wrong."),
    ("even", "Answer: Yes, because 2 is even."),
    ("k\\pi", "\\boxed{2k\\pi, k\\in\\mathbb{Z}}"),
    ("12", "The answer is 12 more than 5."),
    ("12", "The answer is 12 sqrt(3)."),
    ("12", "Answer: cannot be determined; 12 is a guess"),
]
BLANKS = ["", " ", "?", "...", "\\ldots", "\\text{}", "\\text{ }", "\\_\\_", "\\quad", "answer", "\\text{your answer}"]
JUNK = ["-", "+", "/", "^", "---", "\\frac{}{}", "\\sqrt{}", "\\cdot", "1/", "2+", "\\frac{1}{}"]
NO_GOLD = [
    ("\\frac{1}{", "\\boxed{1}"),
    ("nan", "\\boxed{3}"),
    ("We cannot say how many apples there were in the box on Monday.", "\\boxed{3}"),
    ("", "\\boxed{1}"),
]


def verdict(gold: str, text: str) -> str:
    region = answer_region(text)
    return "no answer" if region is None else grade(region, gold)[0]


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_right(gold: str, text: str) -> None:
    assert verdict(gold, text) == "right"


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_wrong(gold: str, text: str) -> None:
    assert verdict(gold, text) in ("wrong", "no answer")


@pytest.mark.parametrize(("gold", "text"), NO_GOLD)
def test_a_gold_that_cannot_be_read_makes_no_answer_wrong(gold: str, text: str) -> None:
    assert verdict(gold, text) == "no gold"


SAME_UNIT = [
    ("1 hour 30 minutes", "90 minutes"),
    ("63 inches", "5 ft 3 in"),
    ("5 seconds", "5 sec"),
    ("0.25 dollars", "25¢"),
    ("8 hours", "8 hours per day"),
    ("5 cm", "5"),
    ("5", "5 cm"),
    ("5 km", "5000 m"),
    ("5000 m", "5 km"),
    ("5 \\text{ km}", "5000\\text{ m}"),
    ("5 meters", "5 m"),
    ("5 metres", "5 meters"),
    ("5 feet", "60 inches"),
    ("1 hour", "60 minutes"),
    ("1 h", "3600 s"),
    ("2 kg", "2000 g"),
    ("1 L", "1000 mL"),
    ("1 L", "1000 cm^3"),
    ("1 m^2", "10000 \\text{ cm}^2"),
    ("1 \\text{ square meter}", "10000 cm^2"),
    ("12 sq ft", "12 \\text{ ft}^2"),
    ("\\$5", "500 cents"),
    ("\\$5", "5 dollars"),
    ("\\$5.00", "\\$5"),
    ("5 dollars", "\\$5"),
    ("90^\\circ", "\\frac{\\pi}{2} \\text{ radians}"),
    ("90 degrees", "90^\\circ"),
    ("\\frac{\\pi}{2} rad", "90^\\circ"),
    ("36 km/h", "10 m/s"),
    ("60 mph", "60 \\text{ miles per hour}"),
    ("5 dollars per hour", "\\$5"),
    ("3\\pi cm", "30\\pi mm"),
    ("50\\%", "50 percent"),
    ("10", "10 m^2"),
    ("12 months", "1 year"),
    ("20^\\circ C", "20 \\text{ degrees Celsius}"),
    ("20^\\circ C", "20^\\circ"),
    ("5 pounds", "£5"),
    ("16 oz", "1 pound"),
    ("5 square units", "5"),
    ("5 \\text{ m}^{2}", "5 \\text{ square meters}"),
    ("\\$3 million", "3000000 dollars"),
    ("x=5 cm", "50 mm"),
    ("5 N", "5 kg m/s^2"),
    ("2 hours", "2 \\text{ hrs}"),
    ("72 marbles", "72"),
    ("5 cm long", "5 cm"),
    ("5 cm, 3 cm", "3 cm, 5 cm"),
    ("(1 cm, 2 cm)", "(10 mm, 20 mm)"),
    ("10 cents", "\\$0.10"),
    ("0.5 km", "500 m"),
    ("\\frac{1}{2} hour", "30 min"),
    ("1.5 hours", "90 minutes"),
    ("45 days", "45"),
    ("180", "180^\\circ"),
    ("5 \\mu m", "0.005 mm"),
    ("3 \\text{ km}^2", "3000000 m^2"),
    ("9 \\text{ yards}", "27 ft"),
    ("7 liters", "7 litres"),
    ("7 \\text{ L}", "7 liters"),
    ("USD 5", "5 dollars"),
    ("5 kph", "5 km/h"),
    ("45^{\\circ}", "45^\\circ"),
]
OTHER_UNIT = [
    ("5 seconds", "5 min"),
    ("5 cm", "5 m"),
    ("5 m", "5 cm"),
    ("5 km", "5 m"),
    ("5 kg", "5 g"),
    ("5 kg", "5 m"),
    ("5 hours", "5 minutes"),
    ("5 cm", "5 cm^2"),
    ("5 cm^2", "5 cm^3"),
    ("\\$5", "5 cents"),
    ("\\$5", "€5"),
    ("5 dollars", "5 euros"),
    ("90^\\circ", "90 \\text{ radians}"),
    ("50\\%", "50 cm"),
    ("50 cm", "50\\%"),
    ("5 m/s", "5 km/h"),
    ("5 m/s", "5 m"),
    ("5 seconds", "5 minutes"),
    ("5 square meters", "5 square feet"),
    ("3\\pi cm", "3\\pi m"),
    ("5 miles", "5 km"),
    ("5 liters", "5 gallons"),
    ("5 L", "5 mL"),
    ("x=5 cm", "5 m"),
    ("(1 cm, 2 cm)", "(1 m, 2 m)"),
    ("5 years", "5 months"),
    ("\\frac{1}{2} hour", "\\frac{1}{2} day"),
    ("5 m", "5 s"),
]
"""Equal numbers with other units, which are decoration, as in the shared cases."""
OTHER_QUANTITY = [
    ("1 hour 30 minutes", "80 minutes"),
    ("0.25 dollars", "24¢"),
    ("45^\\circ", "\\frac{\\pi}{4}"),
    ("20^\\circ C", "20^\\circ F"),
    ("6000 m", "5 km"),
]
FORMS = ("\\boxed{{{}}}", "The answer is {}.")


@pytest.mark.parametrize(("gold", "answer"), SAME_UNIT)
@pytest.mark.parametrize("form", FORMS)
def test_a_quantity_is_right_in_any_unit_of_its_dimension_and_without_one(gold: str, answer: str, form: str) -> None:
    assert verdict(gold, form.format(answer)) == "right"


@pytest.mark.parametrize(("gold", "answer"), OTHER_UNIT)
@pytest.mark.parametrize("form", FORMS)
def test_units_are_decoration(gold: str, answer: str, form: str) -> None:
    assert verdict(gold, form.format(answer)) == "right"


@pytest.mark.parametrize(("gold", "answer"), OTHER_QUANTITY)
@pytest.mark.parametrize("form", FORMS)
def test_another_quantity_is_wrong(gold: str, answer: str, form: str) -> None:
    assert verdict(gold, form.format(answer)) == "wrong"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: 5 m because of the slope", "right"),
        ("Answer: 5 cm because of the slope", "right"),
        ("Answer: 50 mm in total", "right"),
        ("Answer: 40 mm in total", "wrong"),
        ("Answer: $5$ m", "right"),
        ("The answer is 5 in total.", "right"),
        ("So she walks 6 m.", "wrong"),
        ("So she walks 5 cm.", "right"),
    ],
)
def test_the_unit_after_a_number_in_a_sentence_counts(text: str, expected: str) -> None:
    assert verdict("5 cm", text) == expected


LABELS = [  # gold, completion, verdict, vote
    ("7", "A: 7", "right", "7"),
    ("7", "A:7", "right", "7"),
    ("7", "A) 7", "right", "7"),
    ("7", "(A) 7", "right", "7"),
    ("7", "**A:** 7", "right", "7"),
    ("7", "We compute.\n\nA: 7", "right", "7"),
    ("8", "A: 7", "wrong", "7"),
    ("7", "B) 7", "right", "7"),
    ("7", "Answer: A) 7", "right", "7"),
    ("7", "The answer is B) 7 because it is prime.", "right", "7"),
    ("7", "A: The total is 7.", "right", "7"),
    ("7", "A: 3 + 4 = 7", "right", "7"),
    ("7", "Ans. 7", "right", "7"),
    ("7", "Answer - 7", "right", "7"),
    ("-7", "Answer: -7", "right", "-7"),
    ("-7", "Answer -7", "right", "-7"),
    ("x = 3", "A: x = 3", "right", "3"),
    ("blue", "A: blue", "right", "blue"),
    ("A", "Answer: A", "right", "A"),
    ("A", "A. because it is so", "right", "A"),
    ("A", "A. We first see that it is so.\nThen it is.", "right", "A"),
    ("A", "A: 7", "right", "A"),
    ("A", "(A) 7", "right", "A"),
    ("B", "A: B", "right", "B"),
    ("C", "A: (C)", "right", "C"),
    ("A", "A: B", "wrong", "B"),
    ("B", "A: 7", "wrong", "A"),
    ("B", "We compute.\n\nB) 7", "right", "B"),
    ("B", "The sum is 7.\n\n(B) because of that, it is 7.", "right", "B"),
    ("A", "A train leaves the station.", "wrong", ""),
]


@pytest.mark.parametrize(("gold", "text", "expected", "voted"), LABELS)
def test_the_gold_answer_tells_the_label_of_an_answer_from_an_option(
    gold: str, text: str, expected: str, voted: str
) -> None:
    word, answer = grade(text, gold)
    assert (word.replace("no answer", "wrong"), answer and vote(answer, gold, word)) == (expected, voted)


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        *(("18", f"\\boxed{{18}} and \\boxed{{{blank}}}", "right") for blank in BLANKS),
        *(("18", f"\\boxed{{{blank}}}", "no answer") for blank in BLANKS),
        ("18", "The answer is 18. \\boxed{}", "right"),
        ("18", "\\boxed{17}. Then \\boxed{18}", "right"),
        ("17", "\\boxed{17}. Then \\boxed{18}", "wrong"),
        *((gold, f"\\boxed{{{junk}}}", "wrong") for junk in JUNK for gold in ("-1", "x + 1", "(1, 2)")),
        ("<", "\\boxed{<}", "right"),
    ],
)
def test_a_blank_box_is_no_answer_and_one_without_a_value_is_wrong(gold: str, text: str, expected: str) -> None:
    assert verdict(gold, text) == expected


@pytest.mark.parametrize("gold", ["5 cm", "\\$5", "7", "A", "1/3", "90^\\circ"])
def test_right_answers_vote_together_and_no_wrong_one_votes_with_them(gold: str) -> None:
    texts = ["5 cm", "50 mm", "5", "5 m", "5 kg", "\\$5", "500 cents", "€5", "A: 7", "7", "(A) 7", "A", "B) 7", "1/3"]
    texts += ["0.333", "0.333333", "90 degrees", "\\frac{\\pi}{2} \\text{ rad}", "90 \\text{ rad}"]
    votes: dict[str, set[str]] = {"right": set(), "wrong": set()}
    for text in texts:
        word, answer = grade(f"\\boxed{{{text}}}", gold)
        votes[word].add(vote(answer, gold, word))
    assert len(votes["right"]) == 1
    assert not votes["right"] & votes["wrong"]


def test_votes_of_wrong_quantities_are_in_the_unit_of_the_gold_answer() -> None:
    assert [vote(answer, "5 km", "wrong") for answer in ("6 km", "6000 m", "6")] == ["6", "6", "6"]
    assert vote("6 m", "5 km", "wrong") != "6"


def test_a_gold_sentence_is_right_for_itself_only() -> None:
    gold = "$f(x) = ax + b$, where $b$ is any integer and $a$ a positive one"
    assert verdict(gold, f"\\boxed{{{gold}}}") == "right"
    assert verdict(gold, "\\boxed{f(x) = bx + a}") == "no gold"


def test_shared_cases(shared_data: Path) -> None:
    path = shared_data.parent / "cases" / "verify.jsonl"
    if not path.exists():
        pytest.skip("needs ../shared/cases")
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with Verifier(workers=2) as verifier:
        verdicts = verifier.check([Claim(case["text"], case["gold"]) for case in cases])
    assert len(cases) == 197
    assert [
        (c["gold"], c["text"], v.verdict) for c, v in zip(cases, verdicts, strict=True) if v.verdict not in c["accept"]
    ] == []


@pytest.mark.parametrize("gold", [gold for gold, _ in RIGHT if "####" not in gold and "answer" not in gold])
def test_an_answer_is_right_for_itself(gold: str) -> None:
    assert same_answer(latex.plain_latex(gold), latex.plain_latex(gold))


def test_a_parser_that_fails_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict("\\frac{1}{2}", "\\boxed{\\unknowncommand{3}}") == "crash"
    import latex2sympy2_extended

    def fail(*_args: object, **_options: object) -> None:
        raise RecursionError

    monkeypatch.setattr(latex2sympy2_extended, "latex2sympy", fail)
    assert verdict("\\sqrt{2} + 1", "\\boxed{1 + \\sqrt{2} \\cdot 1}") == "crash"
    assert verdict("3", "\\boxed{4}") == "wrong"


# --- votes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        ["\\frac{1}{2}", "0.5", "1/2", "\\dfrac12", "\\frac{2}{4}", "x = 0.5", "½", "\\text{0.50}"],
        [
            "\\begin{pmatrix}1/2\\\\2\\end{pmatrix}",
            "\\begin{bmatrix} \\frac12 \\\\ 2 \\end{bmatrix}",
            "\\left[\\begin{matrix}0.5\\\\2.0\\end{matrix}\\right]",
            "\\left(\\begin{array}{c}\\frac{1}{2}\\\\2\\end{array}\\right)",
        ],
        ["[2,5)", "2 \\le x < 5", "x \\in [2, 5)", "5 > x \\ge 2"],
        ["\\{1, 2\\}", "2, 1", "x = 1 \\text{ or } x = 2", "1 and 2"],
        ["(x-2)(x+2)", "x^2-4", "x^2 - 4", "y = x^2 - 4"],
        ["2\\sqrt{2}", "\\sqrt{8}", "\\sqrt 8"],
        ["(C)", "C", "\\textbf{(C) } 12", "\\text{C}"],
        ["12 \\text{ cm}", "12", "12 cm", "\\$12", "12.0"],
        ["\\text{Monday}", "monday", "Monday."],
        ["x = 1, y = 2", "(1, 2)", "\\langle 1,2 \\rangle"],
        ["x = 1, 2", "x_1 = 2, x_2 = 1", "1, 2"],
        ["\\mathbb{R}", "(-\\infty, \\infty)", "x \\in \\mathbb{R}", "\\text{all real numbers}"],
        ["\\emptyset", "\\text{no solution}", "\\{\\}"],
        ["x \\ne 3", "\\mathbb{R} \\setminus \\{3\\}"],
        ["x^2 + y^2 = 4", "x^2 + y^2 - 4 = 0", "4 - x^2 = y^2", "2x^2 + 2y^2 = 8"],
        ["\\sin 2x", "2 \\sin x \\cos x"],
        ["\\sqrt{2} + \\sqrt{3}", "\\sqrt{5 + 2\\sqrt{6}}"],
        ["1 + i", "\\sqrt2 e^{i\\pi/4}"],
        ["101_2", "(101)_{2}", "101_{\\text{two}}"],
        ["2:30 \\text{ p.m.}", "2:30 PM"],
        ["3:2", "3 \\text{ to } 2", "1.5"],
        ["x \\equiv 2 \\pmod 5", "2 \\pmod 5"],
        ["3 + 4 = 7", "7"],
        ["0.\\overline{3}", "1/3", "0.333..."],
    ],
)
def test_equal_answers_have_one_spelling(answers: list[str]) -> None:
    assert len({canonical_answer(latex.plain_latex(answer)) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(1,2)", "\\{1,2\\}"),
        ("(1,2)", "(2,1)"),
        ("[0,1]", "(0,1]"),
        ("ABC", "BAC"),
        ("1/3", "0.333"),
        ("x", "-x"),
        ("101_2", "101"),
        ("9:30 AM", "9:30 PM"),
        ("P(A|B)", "P(B|A)"),
        ("42...", "42"),
        ("7:1:1", "7"),
        ("x + y = 7", "x - y = 7"),
        ("2I", "2i"),
    ],
)
def test_unlike_answers_are_spelled_apart(one: str, other: str) -> None:
    assert canonical_answer(latex.plain_latex(one)) != canonical_answer(latex.plain_latex(other))


# --- the parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("**\\dfrac12$**", "\\frac{1}{2}"),
        ("\\text{17}.", "17"),
        ("１２½％", "12\\frac{1}{2}\\%"),
        ("\\frac{\\frac12}3", "\\frac{\\frac{1}{2}}{3}"),
        ("√(x+1)", "\\sqrt{x+1}"),
        ("1,234,567.5", "1234567.5"),
        ("100, 200", "100, 200"),
        ("(1,000)", "(1,000)"),
        ("0,125", "0.125"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "( 3, \\frac{\\pi}{2} )"),
        ("\\begin{pmatrix}1 \\\\ 2\\end{pmatrix}", "\\begin{pmatrix}1 \\\\ 2\\end{pmatrix}"),
        ("0.333...", "0.333..."),
        ("5!", "5!"),
    ],
)
def test_plain_latex(text: str, plain: str) -> None:
    assert latex.plain_latex(text) == plain


@pytest.mark.parametrize(
    ("text", "value", "digits"),
    [
        ("-3", "-3", 0),
        ("2.50", "5/2", 3),
        ("2e-4", "1/5000", 0),
        ("7\\times 10^{5}", "700000", 0),
        ("-\\frac{1}{2}", "-1/2", 0),
        ("\\frac{-1}{2}", "-1/2", 0),
        ("3 1/4", "13/4", 0),
        ("0.000120", "3/25000", 3),
        ("10^{-3}", "1/1000", 0),
    ],
)
def test_numbers_are_exact(text: str, value: str, digits: int) -> None:
    number = read_number(text)
    assert number is not None
    assert (str(number.value), number.digits) == (value, digits)


@pytest.mark.parametrize("text", ["", "x", "1/0", "2e", "1e99999999", "1 2", "3!", "--1"])
def test_what_is_no_number(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("text", "core", "noun"),
    [
        ("12\\text{ cm}^2", "12", ""),
        ("72 marbles", "72", "marbles"),
        ("9.8 m/s^2", "9.8", ""),
        ("2x", "2x", ""),
        ("3\\pi \\text{ cm}", "3\\pi", ""),
        ("4 t", "4 t", ""),
        ("5 m", "5", ""),
        ("5m", "5m", ""),
        ("\\sin x", "\\sin x", ""),
    ],
)
def test_what_stands_beside_a_number(text: str, core: str, noun: str) -> None:
    quantity = read_quantity(text)
    assert (quantity.core, quantity.noun) == (core, noun)


def test_expressions_are_equal_where_both_have_a_value() -> None:
    assert same_expression("\\sqrt{1/k}", "\\frac{1}{\\sqrt{k}}")
    assert not same_expression("|x|", "x")
    assert not same_expression("\\frac{1}{2^{98}}", "\\frac{1}{2^{97}}")
    assert not same_expression("x + 10^{-40}", "x + 10^{-41}")
    with pytest.raises(UnreadableError):
        same_expression("\\nonsense{", "1")


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("The answer is 42 in 2024.", ["42"]),
        ("Answer: $x = 3$ or $x = 5$, I think", ["x = 3, x = 5"]),
        ("The answer is not 3.", []),
        ("\\boxed{3", []),
        ("I cannot tell.", []),
    ],
)
def test_readings_of_an_answer(text: str, readings: list[str]) -> None:
    assert extraction.extract_answers(text)[: len(readings) or None] == readings


@pytest.mark.parametrize(
    "text",
    [
        "{" * 3000,
        "\\frac" * 500,
        " " * 3000 + "1",
        "(" * 1500 + ")" * 1500,
        "a " * 1500,
        "1," * 1500,
        "x=" * 1500,
        "$" * 3000,
        "\\(" * 1400,
        "<b>" * 1000,
        "k \\in \\mathbb{Z} " * 150,
        "0." + "3" * 2900 + "...",
    ],
)
def test_grading_ends_on_any_text(text: str) -> None:
    assert grade(f"\\boxed{{{text}}}", "3")[0] != "right"
