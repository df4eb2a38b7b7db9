"""Chat templates of the supported families, short forms with the same text, and a tokenizer.

Each writes a question and its answer as the family's own template does; tools and system turns
beyond the default one are left out.
"""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

_CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
_SYSTEM = "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
_QWEN3 = (
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}"
    "{%- set content = m.content %}{%- set thought = '' %}"
    "{%- if '</think>' in m.content %}"
    "{%- set thought = m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
_LLAMA3 = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Name to template, the token called beginning of text, end of text, end of turn, and whether the
# family's tokenizer begins every text with the first.
FAMILIES = {
    "smollm2": (_CHATML, "<|im_start|>", "<|im_end|>", "<|im_end|>", False),
    "qwen2": (_SYSTEM + _CHATML, None, "<|endoftext|>", "<|im_end|>", False),
    "qwen3": (_QWEN3, None, "<|endoftext|>", "<|im_end|>", False),
    "llama2": (_LLAMA2, "<s>", "</s>", "</s>", True),
    "llama3": (_LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", True),
    "gemma": (_GEMMA, "<bos>", "<eos>", "<end_of_turn>", True),
}
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
]


def tokenizer(start: str | None = None) -> tokenizers.Tokenizer:
    """A byte-level tokenizer with every family's special tokens.

    Args:
      start: the token that its post-processor puts before a text, or None.
    """
    letters = [*SPECIAL, *pre_tokenizers.ByteLevel.alphabet()]
    made = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.add_tokens(["<think>", "</think>"])
    if start is not None:
        first = (start, made.token_to_id(start))
        template = processors.TemplateProcessing(f"{start} $A", f"{start} $A $B", [first])
        made.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return made
