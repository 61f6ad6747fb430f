"""Chat templates of strangers: rendered as transformers does, within a time, a memory and a length."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from prmbench.core.records import UserError
from prmbench.engines import chat_templates
from prmbench.engines.encoding import render

MESSAGES = [
    {"role": "user", "content": "What is 1 + 1? <|x|> é \U0001f600 \u2028 {{ 7 }}"},
    {"role": "assistant", "content": "Step 1: two\n\nStep 2: \\boxed{2}"},
]
HARMLESS = {
    "plain": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "blanks": "{%- for m in messages %}\n  {{- m.role | upper }}:\n    {{ m.content | trim }}\n{%- endfor %}\n",
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "JSON": "{{ messages | tojson(indent=2) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "macros": "{% macro say(m) %}{{ m.role }} {{ m.content }}{% endmacro %}{{ say(messages[0]) + say(messages[1]) }}",
    "namespaces": "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 1 %}{{ n.k }}{% endfor %}",
}
HARMFUL = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a long power": "{{ 7 ** (7 ** 11) }}",
    "a large text": "{{ 'x' * 10**9 }}",
    "a large list": "{{ [0] * 10**10 }}",
    "a text somewhat too large": "{{ 'x' * 10**7 }}",
    "a text that doubles": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "joined": "{{ 'a'.join(['b' * 10**6] * 10**4) }}",
    "centred": "{{ 'a' | center(10**10) }}",
    "formatted": "{{ '{:>9999999999}'.format(1) }}",
    "indented": "{{ messages | tojson(indent=10**9) }}",
    "without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "only for some": "{% if 'boxed' in messages[1].content %}{{ 'x' * 10**9 }}{% endif %}",
    "a large range": "{% for i in range(10**9) %}x{% endfor %}",
    "a long source": "x" * (chat_templates.MAX_SOURCE_LENGTH + 1),
}
WRONG = {
    "syntax": "{% oops %}",
    "its own error": "{{ raise_exception('only user turns') }}",
    "an index": "{{ messages[9].content.x }}",
    "a division": "{{ 1 / 0 }}",
    "an attribute that is not for templates": "{{ ''.__class__.__mro__ }}",
    "a change": "{{ messages.append(1) }}",
    "another file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
}


@pytest.fixture(scope="module")
def tokenizer(policy: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(policy)


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_templates, "RENDER_TIMEOUT", 1.0)
        yield


def works(tokenizer: transformers.PreTrainedTokenizerBase) -> bool:
    return render(tokenizer, MESSAGES, HARMLESS["plain"]) == "".join(m["content"] for m in MESSAGES)


@pytest.mark.parametrize("name", HARMLESS)
def test_the_text_is_that_of_transformers(tokenizer: transformers.PreTrainedTokenizerBase, name: str) -> None:
    text = tokenizer.apply_chat_template(MESSAGES, chat_template=HARMLESS[name], tokenize=False)
    assert render(tokenizer, MESSAGES, HARMLESS[name]) == text


@pytest.mark.parametrize("name", HARMFUL)
def test_a_template_meets_its_limits(tokenizer: transformers.PreTrainedTokenizerBase, name: str) -> None:
    with pytest.raises(UserError, match=r"^chat template: ") as caught:
        render(tokenizer, MESSAGES, HARMFUL[name])
    assert len(str(caught.value)) < 300
    assert works(tokenizer)


@pytest.mark.parametrize("name", WRONG)
def test_a_template_that_fails_says_why(tokenizer: transformers.PreTrainedTokenizerBase, name: str) -> None:
    with pytest.raises(UserError, match=r"^chat template: .*; pass --template plain or --template FILE") as caught:
        render(tokenizer, MESSAGES, WRONG[name])
    assert "\n" not in str(caught.value)
    assert works(tokenizer)


def test_the_length_is_bounded_by_the_messages(
    tokenizer: transformers.PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "BASE_TEXT_LENGTH", 10)
    monkeypatch.setattr(chat_templates, "TEXT_LENGTH_FACTOR", 2)
    messages = [{"role": "user", "content": "x" * 100}]
    assert len(render(tokenizer, messages, "{{ messages[0].content * 2 }}")) == 200
    with pytest.raises(UserError, match="more text than a template may"):
        render(tokenizer, messages, "{{ messages[0].content * 3 }}")


def test_a_process_that_dies_is_started_again(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    assert works(tokenizer)
    process = chat_templates._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert works(tokenizer)
    assert chat_templates._worker._process is not process


def test_threads_get_each_their_own_text(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        messages = [{"role": "user", "content": str(number) * 5000}]
        found[number] = render(tokenizer, messages, "{{ messages[0].content }}")

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: str(n) * 5000 for n in range(9)}


def test_the_process_has_no_keys_and_takes_no_module_of_the_folder(tmp_path: Path) -> None:
    """Neither the environment nor a file of a library's name in the current folder reaches it."""
    (tmp_path / "jinja2.py").write_text("open('ran', 'w')\nraise SystemExit")
    code = """
import os, sys
from prmbench.engines import chat_templates
assert chat_templates.render("{{ messages[0].content }}", [{"role": "user", "content": "x"}], {}) == "x"
raw = open(f"/proc/{chat_templates._worker._process.pid}/environ", "rb").read()
print(b"SECRET" in raw or b"TOKEN" in raw)
"""
    environment = {**os.environ, "OPENAI_API_KEY": "SECRET", "HF_TOKEN": "TOKEN"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_rendering_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = """
import sys
from prmbench.engines import chat_templates
chat_templates.RENDER_TIMEOUT = 1.0
chat_templates.render("x", [], {})
print(chat_templates._worker._process.pid, flush=True)
chat_templates.RENDER_TIMEOUT = 0.5
chat_templates._exchange = lambda *_: __import__("os").kill(__import__("os").getpid(), 9)
process = chat_templates._worker._process
source = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
process.stdin.write(chat_templates.json.dumps(
    {"source": source, "messages": [], "values": {}, "longest": 9, "seconds": 1.0}).encode() + b"\\n")
process.stdin.flush()
chat_templates._exchange()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    left = Path("/proc") / done.stdout.strip() / "stat"

    def works_on() -> bool:
        return left.exists() and left.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")

    until = time.monotonic() + 20
    while works_on() and time.monotonic() < until:
        time.sleep(0.1)
    assert not works_on()
