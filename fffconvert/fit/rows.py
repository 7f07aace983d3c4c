"""The text in a row of data: the columns that hold it, and chats in the words of the model's template."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fffconvert.errors import FFFError, first_line

Chat = tuple[dict[str, str], ...]
"""Messages of a chat, each with `role` and `content`."""

TEXT = "text"
"""Goes before all others: where a row has it, nothing else is read."""
CHATS = ("messages", "conversations", "conversation")
EXCHANGES = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "input", "output"),
    ("instruction", "response"),
    ("instruction", "context", "response"),
)
"""What a user asks, in one column or several, and last what is answered."""
USUAL = (
    ("content",),
    ("sentence",),
    ("document",),
    ("article",),
    ("passage",),
    ("abstract",),
    ("title", "abstract"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_A", "sentence_B"),
    ("question1", "question2"),
    ("anchor", "positive"),
    ("anchor", "positive", "negative"),
    ("query",),
    ("query", "positive"),
    ("query", "positive", "negative"),
    ("query", "pos"),
    ("query", "pos", "neg"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "answer"),
    ("question",),
    ("question", "answer"),
    ("question", "context"),
    ("question", "context", "answer"),
    ("question", "passage"),
    ("question", "sentence"),
    *EXCHANGES,
)
"""Columns that hold the texts of a row between them."""
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True)
class Row:
    """A row of data that holds other than one plain text.

    Attributes:
        texts: Each a text of its own, or a chat.
    """

    texts: tuple[str | Chat, ...]

    def rendered(self, tokenizer: Any) -> tuple[str, ...]:
        """All as plain texts, chats by the tokenizer's template."""
        return tuple(text if isinstance(text, str) else plain_chat(text, tokenizer) for text in self.texts)


def read_row(row: Any, place: str, columns: Sequence[str] = ()) -> str | Row:
    """The text of a row of data.

    Args:
        row: Columns and values.
        place: What to call it in errors.
        columns: Those that hold text; empty to find them by their usual names.

    Raises:
        FFFError: It has no such column, or several that could be meant.
    """
    chosen = text_columns(row, place, columns)
    texts = [text for name in chosen for text in texts_of(row[name], f"{place}, {name}")]
    if not columns and chosen in EXCHANGES:
        *asked, answered = texts
        question = "\n\n".join(str(text) for text in asked if text)
        roles = (("user", question), ("assistant", str(answered)))
        return Row((tuple({"role": role, "content": text} for role, text in roles),))
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else Row(tuple(texts))


def text_columns(row: Any, place: str, columns: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns of a row that hold text: those named, or those with the usual names.

    Raises:
        FFFError: It has no such column, or several that could be meant.
    """
    found = (
        f"the fields {', '.join(map(str, row))}" if isinstance(row, Mapping) else f"a {type(row).__name__}"
    )
    if not isinstance(row, Mapping):
        raise FFFError(f"{place} holds {found}; expected an object with text in a field")
    if columns:
        for name in columns:
            if name not in row:
                raise FFFError(f"{place} holds {found}; expected {name}, which `text_columns` names")
        return tuple(columns)
    if isinstance(row.get(TEXT), str):
        return (TEXT,)
    for name in CHATS:
        if _is_chat(row.get(name)):
            return (name,)
    held = {name for name, value in row.items() if _is_text(value)}
    whole = [family for family in USUAL if held.issuperset(family)]
    best = [family for family in whole if not any(set(family) < set(other) for other in whole)]
    if len(best) == 1:
        return best[0]
    if best:
        which = " or ".join("+".join(family) for family in best)
        raise FFFError(f"{place} could be read by {which}; name the column with `text_columns`")
    raise FFFError(
        f"{place} holds {found}; expected text (or messages, content, sentence, premise and "
        "hypothesis, query and positive, or the like), a string; name another with `text_columns`"
    )


def texts_of(value: Any, place: str) -> list[str | Chat]:
    """The texts in one value of a row: a string, a chat, or a list of them; none in an empty one.

    Raises:
        FFFError: It is something else.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if _is_chat(value):
        return [tuple(_message(message) for message in value)]
    if isinstance(value, Sequence):
        return [text for item in value for text in texts_of(item, place)]
    raise FFFError(f"{place} is a {type(value).__name__}; expected text, or messages with role and content")


def plain_chat(chat: Chat, tokenizer: Any) -> str:
    """A chat as one text: by the tokenizer's template where it has one, else message after message."""
    joined = "\n\n".join(message["content"] for message in chat)
    if not getattr(tokenizer, "chat_template", None):
        return joined
    try:
        text = str(tokenizer.apply_chat_template(list(chat), tokenize=False))
    except Exception as error:  # templates raise errors of their own, about roles that they do not know
        warnings.warn(
            f"the tokenizer's chat template refuses a chat ({first_line(error)}); it is read without",
            stacklevel=2,
        )
        return joined
    start = tokenizer.bos_token
    adds = bool(start) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(start) if adds else text  # it would stand there twice


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return True
    is_list = isinstance(value, Sequence) and bool(value)
    return is_list and all(isinstance(item, str) for item in value)


def _is_chat(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(item, Mapping) and ({"role", "from"} & item.keys()) for item in value)


def _message(message: Mapping[str, Any]) -> dict[str, str]:
    role = str(message.get("role", message.get("from")))
    content = message.get("content", message.get("value"))
    if not isinstance(content, str):  # parts, of which images and the like are no text
        parts = content if isinstance(content, Sequence) else ()
        content = "".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping))
    return {"role": _ROLES.get(role, role), "content": content}
