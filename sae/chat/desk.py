"""Send requests to a chat LM: many at once, within a budget, reusing replies on disk."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from threading import Lock
from typing import Literal

from sae.chat.ledger import Ledger
from sae.chat.messages import Client, Echo, Failure, Reply, Request
from sae.progress import progress

log = logging.getLogger(__name__)
_LOST_IN_A_ROW = 10
"""Failures in a row after which no more requests are sent."""
Unanswered = Literal["failed", "unasked"]


@dataclass
class Spent:
    """Requests and tokens of one desk.

    Attributes:
        asked: Requests that the LM answered.
        from_ledger: Requests whose reply was on disk.
        failed: Requests that got no reply.
        unasked: Requests that were not sent: the budget was spent, or the server was gone.
        prompt_tokens: Tokens of the prompts that were answered.
        reply_tokens: Tokens of these replies.
    """

    asked: int = 0
    from_ledger: int = 0
    failed: int = 0
    unasked: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in and out."""
        return self.prompt_tokens + self.reply_tokens

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


class Desk:
    """Sends requests, keeps replies, and stops when the budget of tokens is spent.

    Args:
        client: Chat LM that answers.
        budget: Most tokens, prompts and replies together; replies out of the ledger cost nothing.
    """

    def __init__(self, client: Client, budget: int):
        self.client, self.budget = client, budget
        self.ledger = Ledger(client.identity)
        self.spent = Spent()
        self._reserved = self._lost = 0
        self._lock = Lock()
        self._stopped = False

    def announce(self, requests: int, prompt_tokens: int, reply_tokens: int) -> None:
        """Say how much will be asked, before anything is sent.

        Args:
            requests: Number of requests, replies in the ledger among them.
            prompt_tokens: Tokens that will be read, estimated.
            reply_tokens: Most tokens that will be written.
        """
        over = prompt_tokens + reply_tokens > self.budget
        log.info(
            "%s will get at most %s requests, about %s prompt and up to %s reply tokens. %s %s "
            "tokens (chat.budget). Replies that are on disk are not asked for again.",
            self.client.identity["model"],
            *(f"{number:,}" for number in (requests, prompt_tokens, reply_tokens)),
            "That is more than the budget, which stops at" if over else "The budget is",
            f"{self.budget:,}",
        )

    def ask(self, what: str, requests: Sequence[Request | Echo]) -> list[Reply | Unanswered]:
        """Replies in order; `failed` or `unasked` where there is none.

        Args:
            what: Name of this work, for people.
            requests: Requests to send.

        Raises:
            SourceError: If the client answers nobody: wrong key, unknown model.
        """
        pool = ThreadPoolExecutor(self.client.concurrency)
        found: list[Future[Reply | Unanswered]] = []
        with progress(what, len(requests), "requests") as advance, self.client.session():
            try:
                for request in requests:
                    found.append(pool.submit(self._one, request))
                    found[-1].add_done_callback(lambda _: advance(1))
                return [future.result() for future in found]
            except BaseException:
                self.client.stop()
                raise
            finally:  # replies under way are waited for and kept: they are paid for
                pool.shutdown(cancel_futures=True)

    def _one(self, request: Request | Echo) -> Reply | Unanswered:
        with self.ledger.held(request):
            kept = self.ledger.find(request)
            if kept is not None:
                with self._lock:
                    self.spent.from_ledger += 1
                return kept
            cost = request.prompt_tokens + request.max_tokens
            if not self._reserve(cost):
                return "unasked"
            try:
                reply = self.client.reply(request)
            except Failure as failure:
                log.warning("A request failed: %s", failure)
                self._settle(cost, None)
                return "failed"
            except BaseException:
                self._settle(cost, None)
                raise
            self._settle(cost, reply)
            self.ledger.keep(request, reply)
            return reply

    def _reserve(self, cost: int) -> bool:
        """Set tokens aside for a request; False if the budget does not hold them."""
        with self._lock:
            gone = self._lost >= _LOST_IN_A_ROW
            if not gone and self.spent.tokens + self._reserved + cost <= self.budget:
                self._reserved += cost
                return True
            self.spent.unasked += 1
            if not self._stopped:
                self._stopped = True
                log.warning(
                    "No more requests: %s. Replies are kept; the same command continues from here.",
                    f"{self._lost} requests in a row failed" if gone else
                    f"{self.spent.tokens:,} of {self.budget:,} tokens (budget) are spent, and the "
                    f"next request may take {cost:,}",
                )  # fmt: skip
            return False

    def _settle(self, cost: int, reply: Reply | None) -> None:
        """Give back what was set aside and charge what was used, in one step."""
        with self._lock:
            self._reserved -= cost
            if reply is None:
                self.spent.failed += 1
                self._lost += 1
                return
            self.spent.asked += 1
            self.spent.prompt_tokens += reply.prompt_tokens
            self.spent.reply_tokens += reply.reply_tokens
            self._lost = 0
