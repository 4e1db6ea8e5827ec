"""Which tokens of texts and conversations are learnt, checked against the chat template."""

import json

import pytest

from potstill.data.documents import Document, read_documents
from potstill.data.encoding import encode
from potstill.data.prompts import prompt_of
from potstill.errors import UserError
from potstill.models.characters import END, character_tokenizer

PLAIN = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '"
    + END
    + "' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '"
    + END
    + "' }}{% endgeneration %}{% else %}{{ message['content'] + '"
    + END
    + "' }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
FORGETFUL = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{{ message['content'] if loop.last or message['role'] == 'user' else '...' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PICKY = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + PLAIN
TALK = (
    {"role": "user", "content": "two and two?"},
    {"role": "assistant", "content": " four "},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
)


def tokenizer(template=None):
    made = character_tokenizer("".join(chr(code) for code in range(32, 127)) + "\n")
    made.chat_template = template
    return made


def learnt_text(made, encoded):
    runs, previous = [], False
    for token, learnt in zip(encoded.ids, encoded.learnt, strict=True):
        if learnt:
            runs = runs if previous else [*runs, ""]
            runs[-1] += made.convert_ids_to_tokens(token)
        previous = learnt
    return runs


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_what_the_assistant_writes_is_learnt_with_its_end(template):
    made = tokenizer(template)
    (encoded,) = encode(made, [Document("here", messages=TALK)])
    assert learnt_text(made, encoded) == [f" four {END}", f"yes{END}"]
    whole = made.apply_chat_template(list(TALK), tokenize=True, return_dict=True)["input_ids"]
    assert list(encoded.ids) == list(whole)


def test_it_agrees_with_the_mask_of_a_template_that_marks_the_assistant_itself():
    messages = list(TALK)
    (ours,) = encode(tokenizer(PLAIN), [Document("here", messages=TALK)])
    theirs = tokenizer(MARKED).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert list(ours.ids) == list(theirs["input_ids"])
    assert [int(each) for each in ours.learnt] == list(theirs["assistant_masks"])


def test_a_text_is_learnt_whole_and_ends_once():
    made = tokenizer()
    first, second = encode(made, [Document("a", "ab"), Document("b", "ab" + END)])
    assert list(first.ids) == list(second.ids)
    assert list(first.ids)[-1] == made.eos_token_id
    assert all(first.learnt)


def test_texts_and_conversations_keep_their_order():
    made = tokenizer(PLAIN)
    found = encode(made, [Document("a", "ab"), Document("b", messages=TALK), Document("c", "c")])
    assert [len(each.ids) for each in found][::2] == [3, 2]
    assert not all(found[1].learnt)


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (PLAIN, TALK[:1], "line 3: no turn of the assistant"),
        (None, TALK, "line 3: messages need a chat template"),
        (FORGETFUL, TALK, "line 3: the chat template writes earlier turns otherwise"),
        (PLAIN, TALK[1:], "line 3: the assistant speaks first"),
        (
            PICKY,
            ({"role": "system", "content": "be kind"}, *TALK),
            "line 3: the chat template refuses the conversation: no system here",
        ),
        ("{% for %}", TALK, "line 3: the chat template refuses the conversation: Expected an expression"),
    ],
)
def test_conversations_that_cannot_be_learnt_are_named(template, messages, message):
    with pytest.raises(UserError, match=message):
        encode(tokenizer(template), [Document("chat.jsonl, line 3", messages=tuple(messages))])


def test_a_prompt_that_the_template_refuses_is_named():
    asked = Document("chat.jsonl, line 4", messages=({"role": "system", "content": "be kind"}, TALK[0]))
    with pytest.raises(UserError, match="line 4: the chat template refuses the conversation: no system here"):
        prompt_of(tokenizer(PICKY), asked, 4)


def test_a_mark_at_the_beginning_is_no_text(tmp_path):
    (tmp_path / "some.jsonl").write_text('{"text": "ab"}', encoding="utf-8-sig")
    (tmp_path / "some.txt").write_text("ab", encoding="utf-8-sig")
    for name in ("some.jsonl", "some.txt"):
        assert [each.text for each in read_documents(tmp_path / name, None, "data.train")] == ["ab"]


@pytest.mark.parametrize("name", ["some.json", "some.csv", "some.parquet"])
def test_tables_are_not_learnt_as_they_are_written(tmp_path, name):
    (tmp_path / name).write_text('[{"text": "ab"}]', encoding="utf-8")
    with pytest.raises(UserError, match=rf"data\.train: .*{name}: expected a plain text or \.jsonl"):
        read_documents(tmp_path / name, None, "data.train")


def test_a_response_without_a_letter_is_missing(tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text('{"prompt": "a", "response": " "}\n{"prompt": "a", "response": null}', encoding="utf-8")
    assert all(each.asks for each in read_documents(file, None, "data.train"))


def test_documents_of_a_jsonl_file(tmp_path):
    file = tmp_path / "some.jsonl"
    rows = [{"text": "one\u2028two"}, {"text": "  "}, {"messages": list(TALK)}]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    text, empty, talk = read_documents(file, None, "data.train")
    assert (text.blank, empty.blank, talk.blank) == (False, True, False)
    assert (text.text, talk.messages) == ("one\u2028two", TALK)
    assert talk.where.endswith("line 3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": ', "line 2: not valid JSON"),
        ('{"words": 1}', r"line 1: expected an object with 'text', 'messages' or 'prompt', got \['words'\]"),
        ('{"prompt": "a", "response": ["b"]}', "line 1: expected a text as response, got list"),
        ('{"messages": []}', "line 1: expected messages with a role and a content"),
        ('{"messages": [{"role": "user"}]}', "line 1: expected messages"),
        ('{"text": " "}', "expected documents, got none"),
        ("", "expected documents, got none"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    file = tmp_path / "some.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_documents(file, None, "data.train")


def test_plain_texts_are_split_where_documents_begin(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("before\n# One\na\n# Two\nb", encoding="utf-8")
    assert [each.text for each in read_documents(file, "^# ", "data.train")] == [
        "before\n",
        "# One\na\n",
        "# Two\nb",
    ]
    assert len(read_documents(file, None, "data.train")) == 1
    with pytest.raises(UserError, match=r"data\.split_at: '\^X' matches nowhere"):
        read_documents(file, "^X", "data.train")
    with pytest.raises(UserError, match="regular expression"):
        read_documents(file, "(", "data.train")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_documents(file, None, "data.train")
