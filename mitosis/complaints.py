"""What pydantic complains about, in one sentence."""

import difflib

from pydantic import BaseModel, ValidationError

__all__ = ["first_complaint"]


def first_complaint(error: ValidationError, source: str, settings: BaseModel) -> str:
    """The first complaint about `settings` in words, with near names for an unknown key."""
    complaint = error.errors()[0]
    place = ".".join(str(part) for part in complaint["loc"])
    if complaint["type"] == "extra_forbidden":
        *sections, key = complaint["loc"]
        model: type[BaseModel] = type(getattr(settings, str(sections[0])) if sections else settings)
        near = difflib.get_close_matches(str(key), model.model_fields, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(model.model_fields)}."
        return f"{source}: unknown setting {place!r}.{hint}"
    if complaint["type"] == "value_error":
        return f"{source}: {complaint['ctx']['error']}"
    message = complaint["msg"]
    return f"{source}: {place} = {complaint['input']!r}: {message[0].lower()}{message[1:]}"
