"""The kit's own model behind the chat-completions interface, on this machine only: to show and to test
`endpoint.py` where no other server runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from recr1_lite.models import Policy
from recr1_lite.prompts import break_special_tokens
from recr1_lite.rewriters import encode
from recr1_lite.rollouts import generate_grouped
from recr1_lite.web import local_http

PATH = "/v1/chat/completions"


@contextmanager
def local_server(policy: Policy, port: int = 0, max_prompt_tokens: int = 1024) -> Iterator[str]:
    """Serve `policy` on 127.0.0.1 (port 0: a free one) while inside; gives the base URL.

    For lessons and tests: one chat at a time, no streaming, no key asked for. The last message may be an
    assistant's; the model then goes on with it.
    """
    busy = threading.Lock()

    def answer(path: str, body: str) -> tuple[int, dict]:
        if path != PATH:
            return 404, {"error": {"message": f"there is no {path} here, only {PATH}"}}
        with busy:
            return 200, chat_completion(policy, json.loads(body), max_prompt_tokens)

    with local_http(answer, port) as url:
        yield url + "/v1"


def chat_completion(policy: Policy, body: Mapping, limit: int) -> dict:
    """The answer to one chat of the chat-completions interface. limit: tokens of the prompt."""
    tokenizer = policy.tokenizer
    chat = [{"role": turn["role"], "content": break_special_tokens(tokenizer, turn["content"])}
            for turn in body["messages"]]
    prefix = chat.pop()["content"] if chat[-1]["role"] == "assistant" else ""
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + prefix
    ids, mask = encode(tokenizer, [text], limit, policy.model.device)
    training = policy.model.training
    row = generate_grouped(policy.model.eval(), ids, mask, int(body.get("max_tokens", 64)),
                           tokenizer.eos_token_id, tokenizer.pad_token_id,
                           float(body.get("temperature", 1.0)))[0].tolist()
    policy.model.train(training)
    content = tokenizer.decode(row, skip_special_tokens=True)
    ended = tokenizer.eos_token_id in row
    return {"object": "chat.completion", "created": int(time.time()), "model": policy.name,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content},
                         "finish_reason": "stop" if ended else "length"}],
            "usage": {"prompt_tokens": ids.size(1), "completion_tokens": len(row)}}
