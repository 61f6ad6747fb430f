"""Step ranges by hand and as properties, on every kind of tokenizer; all offline."""

from __future__ import annotations

import copy
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_texts import STEPS, TEXTS
from token_kinds import KINDS, TEMPLATE, byte_bpe, collapsing_unigram, sentencepiece_bpe
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prmbench.core.records import Trace, UserError
from prmbench.engines.encoding import PLAIN, Encoded, encode_chat, encode_separated, encode_tagged, render, step_ranges

TAG = "<extra_0>"
TWO = Trace("t", "Q", ("It is 1.", "So 2"))
# TWO as byte_bpe reads it: a prompt of 7 tokens, step 1 of 11 (it closes with the merged ".\n\n"), step 2 of 9.
OPENING = ["<|user|>", "Ċ", "Q", "<|end|>", "Ċ", "<|assistant|>", "Ċ"]
STEP_1 = ["Step", "Ġ", "1", ":", "Ġ", "I", "t", "Ġis", "Ġ", "1", ".ĊĊ"]
STEP_2 = ["Step", "Ġ", "2", ":", "Ġ", "S", "o", "Ġ", "2"]


def tokens(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(encoded.ids))


def check_owners(tokenizer: PreTrainedTokenizerBase, trace: Trace, encoded: Encoded) -> None:
    """The owner rule again, character by character, on a text put together without the template engine."""
    opening = f"<|user|>\n{trace.prompt}<|end|>\n<|assistant|>\n"
    parts = [f"Step {i + 1}: {step}" for i, step in enumerate(trace.steps)]
    labels = [-1] * len(opening)
    for k, part in enumerate(parts):
        labels += [k] * (len(part) + (2 if k + 1 < len(parts) else 0))
    stop = len(labels)
    text = opening + "\n\n".join(parts) + "<|end|>\n"
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert list(encoded.ids) == again["input_ids"]
    assert len(encoded.ends) == len(trace.steps)
    assert all(begin < end for begin, end in encoded.spans)
    owner = [-1] * encoded.start
    for k, (begin, end) in enumerate(encoded.spans):
        assert begin == len(owner)
        owner += [k] * (end - begin)
    owner += [len(parts)] * (len(encoded.ids) - len(owner))
    for position, (begin, end) in enumerate(again["offset_mapping"]):
        if begin < end:  # an empty token covers nothing; contiguity, checked above, is all it must keep
            wanted = len(parts) if begin >= stop else max(labels[begin : min(end, stop)])
            assert owner[position] == wanted, (position, text[begin:end])


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=st.one_of(TEXTS, st.text(max_size=12)), steps=STEPS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_step_sees_the_next(kind: str, prompt: str, steps: list[str]) -> None:
    tokenizer = KINDS[kind]()
    trace = Trace("t", prompt, tuple(steps))
    encoded = encode_chat(tokenizer, trace, template=TEMPLATE)
    assert encoded.unscored == ""
    check_owners(tokenizer, trace, encoded)


@given(steps=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_a_step_decodes_to_its_own_text_and_the_gap_after_it(steps: list[str]) -> None:
    # Qwen2's cuts never join a newline to the letter after it, so that here ranges are exact to the character.
    encoded = encode_chat(byte_bpe(), Trace("t", "Q", tuple(steps)))
    read = [byte_bpe().decode(encoded.ids[begin:end]) for begin, end in encoded.spans]
    gaps = ["\n\n"] * (len(steps) - 1) + [""]
    written = [f"Step {i}: {step}{gap}" for i, (step, gap) in enumerate(zip(steps, gaps, strict=True), 1)]
    assert read == [unicodedata.normalize("NFC", text) for text in written]


@pytest.mark.parametrize("kind", KINDS)
@given(steps=STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_separated_pieces_are_the_tokenizers_own(kind: str, steps: list[str]) -> None:
    tokenizer = KINDS[kind]()
    encoded = encode_separated(tokenizer, Trace("t", "Find x.", tuple(steps)), ";")
    pieces = [tokenizer.encode(step, add_special_tokens=False) for step in steps]
    if not all(pieces):
        assert encoded.unscored.endswith("has no token of its own")
        return
    closing = tokenizer.encode(";", add_special_tokens=False)
    assert [list(encoded.ids[a:b]) for a, b in encoded.spans] == [piece + closing for piece in pieces]
    assert encoded.ends[-1] == len(encoded.ids)


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe", "collapsing_unigram"])
@given(steps=STEPS)
@settings(max_examples=40, deadline=None)
def test_every_tag_closes_its_step(kind: str, steps: list[str]) -> None:
    tokenizer = KINDS[kind]()
    encoded = encode_tagged(tokenizer, Trace("t", f"Q {TAG}", tuple(steps)), TAG)
    tag = tokenizer.convert_tokens_to_ids(TAG)
    assert encoded.unscored == ""
    positions = [i for i, token in enumerate(encoded.ids) if token == tag]
    assert list(encoded.score_positions) == positions[1:]  # the first one is the prompt's
    assert encoded.ends == tuple(i + 1 for i in encoded.score_positions)
    assert positions[0] < encoded.start < encoded.ends[0]


def test_whole_tokens_go_to_the_step_they_close() -> None:
    offsets = [(0, 10), (10, 15), (15, 20), (20, 28), (28, 30)]
    assert step_ranges(offsets, [10, 20], 28) == (1, (3, 4))


def test_a_token_that_touches_the_next_step_is_the_next_steps() -> None:
    assert step_ranges([(0, 10), (10, 19), (19, 21), (21, 28)], [10, 20], 28) == (1, (2, 4))
    assert step_ranges([(0, 9), (9, 11), (11, 20), (20, 28)], [10, 20], 28) == (1, (3, 4))


def test_a_token_across_the_end_is_the_last_steps() -> None:
    assert step_ranges([(0, 10), (10, 25), (25, 30), (30, 31)], [10, 20], 28) == (1, (1, 3))


def test_empty_and_backward_offsets_keep_ranges_contiguous() -> None:
    assert step_ranges([(0, 10), (10, 20), (0, 0), (20, 28), (28, 28)], [10, 20], 28) == (1, (3, 4))
    assert step_ranges([(0, 10), (10, 20), (20, 28), (0, 0), (28, 30), (0, 0)], [10, 20], 28) == (1, (2, 4))


def test_bytes_of_one_character_stay_together() -> None:
    assert step_ranges([(0, 10), (10, 19), (19, 20), (19, 20), (19, 20), (20, 28)], [10, 20], 28) == (1, (5, 6))


def test_byte_bpe_by_hand() -> None:
    encoded = encode_chat(byte_bpe(), TWO)
    assert tokens(byte_bpe(), encoded) == [*OPENING, *STEP_1, *STEP_2, "<|end|>", "Ċ"]
    assert encoded == Encoded("t", encoded.ids, 7, (18, 27))
    assert encoded.spans == ((7, 18), (18, 27))
    assert encoded.counts == (11, 9)


def test_collapsed_gap_by_hand() -> None:
    # "▁Step" covers the gap and the header: it is the next step's, and the first one's is not the prompt's.
    encoded = encode_chat(collapsing_unigram(), TWO)
    step_1 = ["▁Step", "▁1", ":", "▁", "I", "t", "▁is", "▁1", "."]
    assert tokens(collapsing_unigram(), encoded)[6:16] == [*step_1, "▁Step"]
    assert (encoded.start, encoded.ends[0]) == (6, 15)
    assert tokens(collapsing_unigram(), encoded)[encoded.ends[1] :] == ["<|end|>", "▁"]


def test_sentencepiece_gap_by_hand() -> None:
    encoded = encode_chat(sentencepiece_bpe(), TWO)
    words = tokens(sentencepiece_bpe(), encoded)
    assert words[encoded.ends[0] - 3 : encoded.ends[0] + 2] == [".", "<0x0A>", "<0x0A>", "St", "ep"]
    assert words[encoded.start - 1 : encoded.start + 1] == ["<0x0A>", "St"]


def test_plain_text_starts_with_bos() -> None:
    encoded = encode_chat(byte_bpe(), TWO, template=PLAIN)
    assert tokens(byte_bpe(), encoded) == ["<s>", "Q", "ĊĊ", *STEP_1, *STEP_2]
    assert (encoded.start, encoded.ends) == (3, (14, 23))


def test_release_reaches_into_the_next_header() -> None:
    # Prefix of step 1: 7 + 11 (here "." stands alone) + <|end|> + "\n\n" = 20 tokens, e_1 = 18, terms up to token 19:
    # two tokens into step 2, because the whole text merges ".\n\n". The last step takes <|end|> along.
    encoded = encode_chat(byte_bpe(), TWO, boundary="release")
    assert encoded.ids == encode_chat(byte_bpe(), TWO).ids
    assert (encoded.start, encoded.ends) == (7, (20, 28))
    assert tokens(byte_bpe(), encoded)[20:28] == [*STEP_2[2:], "<|end|>"]
    assert encoded.counts == encoded.release_counts == (12, 8)  # e_1 - first = 18 - 6, then 26 - 18
    assert encoded.masked_positions == ()


@pytest.mark.parametrize("pad", ["<|end|>", None])
def test_release_hides_padding_ids_from_attention(pad: str | None) -> None:
    tokenizer = copy.deepcopy(byte_bpe())
    tokenizer.pad_token = pad
    encoded = encode_chat(tokenizer, TWO, boundary="release")
    assert encoded.masked_positions == (3, 27)
    assert encode_chat(tokenizer, TWO).masked_positions == ()


def test_release_needs_a_chat_template() -> None:
    with pytest.raises(UserError, match="boundary release"):
        encode_chat(byte_bpe(), TWO, template=PLAIN, boundary="release")


def test_tagged_by_hand() -> None:
    encoded = encode_tagged(byte_bpe(), TWO, TAG, system="I")
    assert tokens(byte_bpe(), encoded) == [
        "<|system|>", "Ċ", "I", "<|end|>", "Ċ", *OPENING,
        "I", "t", "Ġis", "Ġ", "1", ".", TAG, "S", "o", "Ġ", "2", TAG, "<|end|>", "Ċ",
    ]  # fmt: skip
    assert (encoded.start, encoded.score_positions, encoded.ends) == (12, (18, 23), (19, 24))


def test_a_step_that_holds_the_tag_is_not_scored() -> None:
    encoded = encode_tagged(byte_bpe(), Trace("t", "Q", (f"a{TAG}b", "c")), TAG)
    assert encoded == Encoded("t", unscored="3 tags for 2 steps")


def test_as_many_tags_as_steps_in_the_wrong_place_are_not_scored() -> None:
    # "aT" merges, so that the first step's tag is lost, and the second step begins with another one.
    vocabulary = {"<unk>": 0, "T": 1, "a": 2, "b": 3, "aT": 4}
    wrong = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("a", "T")], unk_token="<unk>")), unk_token="<unk>"
    )
    encoded = encode_tagged(wrong, Trace("t", "b", ("a", "Tb")), "T", template=PLAIN)
    assert encoded == Encoded("t", unscored="a tag is not where its step ends")


@pytest.mark.parametrize("tag", [" is it", ""])
def test_a_tag_must_be_one_token(tag: str) -> None:
    with pytest.raises(UserError, match="not a single token"):
        encode_tagged(byte_bpe(), TWO, tag)


def test_an_unknown_character_is_not_a_tag() -> None:
    tokenizer = one_token_per("none")
    assert tokenizer.encode("ки", add_special_tokens=False) == [0]
    with pytest.raises(UserError, match="not a single token"):
        encode_tagged(tokenizer, TWO, "ки")


def test_separated_by_hand() -> None:
    # ByT5: one token a byte, the byte's value plus 3; no bos.
    encoded = encode_separated(ByT5Tokenizer(), Trace("t", "ab", ("c", "de")), "\n")
    assert encoded == Encoded("t", (100, 101, 102, 13, 103, 104, 13), 2, (4, 7), score_positions=(3, 6))


def test_separated_pieces_do_not_merge() -> None:
    encoded = encode_separated(byte_bpe(), TWO, "\n\n")
    assert tokens(byte_bpe(), encoded) == [
        "<s>", "Q", "I", "t", "Ġis", "Ġ", "1", ".", "ĊĊ", "S", "o", "Ġ", "2", "ĊĊ"
    ]  # fmt: skip
    assert (encoded.start, encoded.score_positions) == (2, (8, 13))


def test_the_read_is_the_last_token_of_a_long_separator() -> None:
    encoded = encode_separated(ByT5Tokenizer(), Trace("t", "ab", ("c", "de")), "\n#")
    assert (encoded.score_positions, encoded.ends) == ((4, 8), (5, 9))


def test_a_separator_must_leave_a_token() -> None:
    with pytest.raises(UserError, match="leaves no token"):
        encode_separated(byte_bpe(), TWO, "")


@pytest.mark.parametrize("boundary", ["exact", "release"])
def test_blank_steps_and_empty_traces(boundary: str) -> None:
    assert encode_chat(byte_bpe(), Trace("t", "Q", ("a", " \n")), boundary=boundary).unscored == "step 2 is blank"
    assert encode_chat(byte_bpe(), Trace("t", "Q", ()), boundary=boundary).unscored == "no steps"


def test_blank_steps_in_the_other_formats() -> None:
    blank = Trace("t", "Q", ("\t", "b"))
    assert encode_tagged(byte_bpe(), blank, TAG).unscored == "step 1 is blank"
    assert encode_separated(byte_bpe(), blank, "\n").unscored == "step 1 is blank"


def test_too_long_is_a_reason_and_just_fitting_is_not() -> None:
    reason = "28 tokens, the model takes 27"
    trace = Trace("t", "Q", ("It is 1.", "So "))
    assert encode_chat(byte_bpe(), trace, max_tokens=28).unscored == ""
    assert encode_chat(byte_bpe(), trace, max_tokens=27) == Encoded("t", unscored=reason)
    assert encode_chat(byte_bpe(), trace, boundary="release", max_tokens=27).unscored == reason
    assert encode_tagged(byte_bpe(), TWO, TAG, max_tokens=20).unscored == "21 tokens, the model takes 20"
    assert encode_separated(byte_bpe(), TWO, "\n\n", max_tokens=13).unscored == "14 tokens, the model takes 13"


def one_token_per(cut: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(cut), "merged_with_next")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_steps_without_a_token_of_their_own() -> None:
    assert encode_chat(one_token_per("Step 1"), TWO, template=PLAIN).unscored == "step 1 has no token of its own"
    assert encode_chat(one_token_per("none"), TWO, template=PLAIN).unscored == "no token comes before step 1"


@pytest.mark.parametrize("content", ["", "{{ m['content'] | upper }}", "{{ m['content'][:20] }}"])
def test_a_template_that_rewrites_the_solution(content: str) -> None:
    template = "{% for m in messages %}" + content + "{% endfor %}"
    assert encode_chat(byte_bpe(), TWO, template).unscored == "the chat template rewrites the solution"
    assert encode_tagged(byte_bpe(), TWO, TAG, template=template).unscored == "the chat template rewrites the solution"


def test_a_template_may_trim_the_solution() -> None:
    trimming = TEMPLATE.replace("m['content']", "m['content'] | trim")
    loose = Trace("t", "Q", ("It is 1.", "So 2  "))
    assert encode_chat(byte_bpe(), loose, trimming) == encode_chat(byte_bpe(), TWO)
    early = Trace("t", "Q", ("  It is 1.", "So 2"))
    assert encode_tagged(byte_bpe(), early, TAG, template=trimming) == encode_tagged(byte_bpe(), TWO, TAG)


def test_a_template_may_add_to_the_solution() -> None:
    # Qwen3's inserts an empty think block, which then belongs to the prompt.
    block = "<think>\n\n</think>\n\n"
    template = (
        "{% for m in messages %}{{ '" + block.replace("\n", "\\n") + "' if loop.last }}{{ m['content'] }}{% endfor %}"
    )
    encoded = encode_chat(byte_bpe(), TWO, template)
    assert byte_bpe().decode(encoded.ids[: encoded.start]) == "Q" + block
    assert byte_bpe().decode(encoded.ids[encoded.start :]) == "Step 1: It is 1.\n\nStep 2: So 2"


def test_the_solution_is_found_after_the_problem_that_quotes_it() -> None:
    quoting = Trace("t", "Step 1: It is 1.\n\nStep 2: So 2", TWO.steps)
    encoded = encode_chat(byte_bpe(), quoting)
    assert byte_bpe().decode(encoded.ids[encoded.start :]) == "Step 1: It is 1.\n\nStep 2: So 2<|end|>\n"
    assert byte_bpe().decode(encoded.ids[: encoded.start]).endswith("<|assistant|>\n")


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no system turn') }}", "{{ 1 + 'a' }}"])
@pytest.mark.parametrize("boundary", ["exact", "release"])
def test_a_broken_template_is_the_users_to_mend(template: str, boundary: str) -> None:
    with pytest.raises(UserError, match=r"^chat template: .*--template FILE$"):
        encode_chat(byte_bpe(), TWO, template, boundary=boundary)


def test_no_template_at_all() -> None:
    bare = copy.deepcopy(byte_bpe())
    bare.chat_template = None
    with pytest.raises(UserError, match="--template plain"):
        encode_chat(bare, TWO)
    assert encode_chat(bare, TWO, TEMPLATE) == encode_chat(byte_bpe(), TWO)


def test_a_slow_tokenizer_has_no_offsets() -> None:
    with pytest.raises(UserError, match="offsets"):
        encode_chat(ByT5Tokenizer(), TWO, template=PLAIN)


def test_the_date_is_always_the_same() -> None:
    template = "{{ date_string }}; {{ strftime_now('%Y-%m-%d') }}"
    assert render(byte_bpe(), [{"role": "user", "content": "Q"}], template) == "26 Jul 2024; 26 Jul 2024"


def test_holding_the_clock_leaves_a_templates_blanks_alone() -> None:
    template = "\n  {% if true %}\n a\n  {% endif %}\n b{# strftime_now #}"
    messages = [{"role": "user", "content": "Q"}]
    without = template.replace("strftime_now", "")
    assert render(byte_bpe(), messages, template) == render(byte_bpe(), messages, without)
