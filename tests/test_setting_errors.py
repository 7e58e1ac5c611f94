"""What is wrong with settings, in words."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from hyperbrush.setting_errors import wrong_settings


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = Field(5, ge=1, le=100)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field("x", min_length=1, max_length=5, pattern=r"^[^/\\:<>\x00-\x1f]+$")
    word: Annotated[str, Field(min_length=3)] = "abc"
    share: FiniteFloat = Field(0.5, gt=0, lt=1)
    most: float = Field(1.0, le=100.0)
    on: bool = True
    kind: Literal["a", "b"] = "a"
    some: list[int] = Field([1], min_length=1, max_length=2)
    inner: Inner = Inner()

    @field_validator("most")
    @classmethod
    def _odd(cls, value: float) -> float:
        if value == 13:
            raise ValueError("13 brings bad luck")
        return value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, "name: must not be empty (got '')"),
        ({"name": "a/b"}, "name: must have none of / \\ : < > in it (got 'a/b')"),
        ({"name": "abcdef"}, "name: longer than 5 characters (got 'abcdef')"),
        ({"name": 3}, "name: expected a text (got 3)"),
        ({"word": "a"}, "word: expected 3 characters or more (got 'a')"),
        ({"share": 1}, "share: expected less than 1 (got 1)"),
        ({"share": 0}, "share: expected more than 0 (got 0)"),
        ({"share": float("inf")}, "share: expected a finite number (got inf)"),
        ({"share": "much"}, "share: expected a number (got 'much')"),
        ({"most": 200}, "most: expected 100 at most (got 200)"),
        ({"most": 13}, "most: 13 brings bad luck (got 13)"),
        ({"on": "perhaps"}, "on: expected true or false (got 'perhaps')"),
        ({"kind": "c"}, "kind: expected 'a' or 'b' (got 'c')"),
        ({"some": []}, "some: expected 1 or more of them, there are 0 (got [])"),
        ({"some": [1, 2, 3]}, "some: expected 2 of them at most, there are 3 (got [1, 2, 3])"),
        ({"some": 5}, "some: expected a list (got 5)"),
        ({"inner": {"steps": 1.5}}, "inner.steps: expected a whole number (got 1.5)"),
        ({"inner": {"step": 1}}, "unknown setting 'inner.step', did you mean 'steps'?"),
        ({"inner": 5}, "inner: expected a mapping (got 5)"),
    ],
)
def test_every_kind_of_error_is_told_in_words(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        Outer.model_validate(values)
    assert wrong_settings(Outer, wrong.value) == [words]
