"""What rendering a conversation needs of a tokenizer."""

from typing import Any


class ChatTokenizer:
    """A tokenizer that has a chat template and nothing else."""

    def __init__(self, template: str):
        self.chat_template = template

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        """The conversation as text, by transformers."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            conversations=[conversation], chat_template=self.chat_template, add_generation_prompt=add_generation_prompt
        )
        return str(rendered[0])
