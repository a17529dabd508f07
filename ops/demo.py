"""The main job as a story on the terminal: each step with its call, its answer, and its effects."""

import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from threading import Thread
from typing import Any

import httpx

from ops import audit
from ops.stack import Stack

GOOD_CARD = "4242 4242 4242 4242"
DECLINED_CARD = "4000 0000 0000 0002"
PHONE = "010-1234-5678"
SUITE = "Suite"
WAIT_SECONDS = 10


class NotAsPromised(Exception):
    """A step's answer differs from the story."""


class Story:
    """Announces a step, makes its call, and compares the answer with the expected one."""

    def __init__(self, stack: Stack) -> None:
        self._client = httpx.Client(base_url=stack.gateway_url, timeout=10)
        self._tokens = {
            "guest": stack.token(subject=f"guest-{random.randrange(10**6)}", role="guest"),  # noqa: S311
            "desk": stack.token(subject="desk", role="desk"),
        }
        self._shown: set[tuple[str, str, str]] = set()
        self._log = stack.home / "log" / "mypage_svc.log"
        self._read = self._log.stat().st_size  # how much of the log was shown already
        self._step = 0

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _show_messages(self) -> None:
        """Prints the KakaoTalk messages that went out since the last look."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            lines = log.read().splitlines()
            self._read = log.tell()
        for line in lines:
            if b'"KakaoTalk to' in line:
                print(f"         {json.loads(line)['message'][:110]}…")

    @contextmanager
    def watching(self, order_id: str) -> Iterator[None]:
        """Watches My page during the block, and prints the states that it has gone through."""
        seen: list[str] = []
        url = f"/mypages/{order_id}:watch"
        headers = {"Authorization": f"Bearer {self._tokens['guest']}"}
        print(f"   guest GET {url}")
        with self._client.stream("GET", url, headers=headers) as answer:

            def read() -> None:
                with suppress(httpx.HTTPError):
                    for line in answer.iter_lines():
                        if line.startswith("data: {") and (status := json.loads(line[6:]).get("status")):
                            seen.extend([status] if seen[-1:] != [status] else [])

            reader = Thread(target=read, daemon=True)
            reader.start()
            yield
            ends = time.monotonic() + WAIT_SECONDS
            while seen[-1:] != ["CANCELED"] and time.monotonic() < ends:
                time.sleep(0.05)
            print(f"         watched: {' → '.join(seen)}")
            self.expect("the last state that was watched", seen[-1:], ["CANCELED"])

    def step(self, title: str) -> None:
        """Starts a step."""
        self._step += 1
        print(f"\n{self._step}. {title}")

    def call(
        self, who: str, method: str, path: str, body: Mapping[str, Any] | None = None, *, status: int = 200
    ) -> dict[str, Any]:
        """Makes one call and shows it. Raises NotAsPromised if the answer has another status."""
        print(f"   {who:<5} {method} {path}{' ' + json.dumps(body) if body is not None else ''}")
        headers = {"Authorization": f"Bearer {self._tokens[who]}"}
        answer = self._client.request(method, path, json=body, headers=headers)
        result: dict[str, Any] = answer.json()
        print(f"         → {answer.status_code} {_in_short(result)}")
        self.expect(f"the answer {status}", answer.status_code, status)
        return result

    def search(self, path: str) -> dict[str, Any]:
        """Searches rooms without printing it."""
        return dict(self._client.get(path).json())

    def expect(self, what: str, found: object, promised: object) -> None:
        """Raises NotAsPromised unless the condition holds."""
        if found != promised:
            raise NotAsPromised(f"{what}: found {found!r}, promised {promised!r}")

    def behind(self, order_id: str, *events: str) -> dict[str, Any]:
        """Prints what My page has learned since the last look, once it knows these events."""
        ends = time.monotonic() + WAIT_SECONDS
        headers = {"Authorization": f"Bearer {self._tokens['guest']}"}
        while True:
            page = self._client.get(f"/mypages/{order_id}", headers=headers).json()
            timeline = [(entry["event"], entry["detail"]) for entry in page.get("timeline", [])]
            news = [entry for entry in timeline if (order_id, *entry) not in self._shown]
            is_told = all(message["status"] != "PENDING" for message in page.get("notifications", []))
            if set(events) <= {event for event, _ in news} and is_told:
                break
            if time.monotonic() > ends:
                raise NotAsPromised(f"{', '.join(events)} have not reached My page after {WAIT_SECONDS} s")
            time.sleep(0.05)
        self._shown |= {(order_id, *entry) for entry in news}
        print(f"         behind it: {' → '.join(event + (f' ({detail})' if detail else '') for event, detail in news)}")
        self._show_messages()
        return dict(page)


def tell(stack: Stack) -> bool:
    """Tells the whole story; returns True if every step was as promised and the audit finds nothing."""
    story = Story(stack)
    # Nights of its own, so that the story can be told again on the same stack.
    night = date.today() + timedelta(days=random.randrange(30, 330))  # noqa: DTZ011, S311 - any night will do
    stay = {"checkIn": night.isoformat(), "checkOut": (night + timedelta(days=2)).isoformat()}
    try:
        _book_and_pay(story, stay)
        _pay_later(story, stay)
        _sell_out(story, stay)
    except NotAsPromised as error:
        print(f"\nNOT AS PROMISED: {error}")
        return False
    finally:
        story.close()
    story.step("The audit: do the books of the four services, the card processor and the stream agree?")
    return audit.report(stack)


def _book_and_pay(story: Story, stay: dict[str, str]) -> None:
    story.step("The guest looks for a room for four.")
    found = story.call("guest", "GET", f"/rooms?checkIn={stay['checkIn']}&checkOut={stay['checkOut']}&guestCnt=4")
    story.expect("Prime is offered", "Prime" in [room["roomType"] for room in found["rooms"]], True)

    story.step("The guest books it and pays at once.")
    order = story.call(
        *("guest", "POST", "/orders"),
        {"name": "Guest4", "phoneNo": PHONE, "roomType": "Prime", "guestCnt": 4, **stay, "cardNo": GOOD_CARD},
    )
    story.expect("the order's status", order["status"], "PAID")
    story.behind(order["id"], "Ordered", "PaymentApproved", "ReservationTaken")

    story.step("The guest watches My page while the booking goes on.")
    with story.watching(order["id"]):
        _confirm_and_cancel(story, order)


def _confirm_and_cancel(story: Story, order: dict[str, Any]) -> None:
    story.step("The hotel's desk sees the paid booking and confirms it.")
    reservation = story.call("desk", "POST", f"/reservations/{order['id']}:confirm", {})
    story.expect("the reservation's status", reservation["status"], "CONFIRMED")
    story.behind(order["id"], "ReservationConfirmed")

    story.step("The guest looks at My page.")
    page = story.call("guest", "GET", f"/mypages/{order['id']}")
    story.expect("My page's status", page["status"], "CONFIRMED")
    story.expect("its confirmation number", page["confirmationNo"], reservation["confirmationNo"])

    story.step("Plans change: the guest cancels, and gets the money back.")
    order = story.call("guest", "DELETE", f"/orders/{order['id']}")
    story.expect("the order's status", order["status"], "CANCELING")
    story.behind(order["id"], "OrderCanceled", "PaymentCanceled", "ReservationCanceled")
    payment = story.call("guest", "GET", f"/payments/{order['id']}")
    story.expect("the payment's status", payment["status"], "CANCELED")
    story.expect("the refund", payment["refundedAmount"], payment["amount"])


def _pay_later(story: Story, stay: dict[str, str]) -> None:
    story.step("A card is declined: the order stands, its room is held, and it can be paid later.")
    order = story.call(
        *("guest", "POST", "/orders"),
        {"name": "Guest2", "roomType": "Normal", "guestCnt": 2, **stay, "cardNo": DECLINED_CARD},
    )
    story.expect("the order's status", order["status"], "PAYMENT_PENDING")
    story.expect("the reason", order["paymentError"]["reason"], "CARD_DECLINED")
    story.behind(order["id"], "Ordered", "PaymentDeclined")

    story.step("The guest pays it with another card.")
    order = story.call("guest", "POST", "/payments", {"orderId": order["id"], "cardNo": GOOD_CARD})
    story.expect("the order's status", order["status"], "PAID")
    story.behind(order["id"], "PaymentApproved", "ReservationTaken")


def _sell_out(story: Story, stay: dict[str, str]) -> None:
    story.step("The desk puts a suite on sale, of which there is one.")
    rate = {"currencyCode": "KRW", "units": "900000"}
    story.call("desk", "PUT", f"/roomTypes/{SUITE}", {"capacity": 1, "maxGuests": 2, "nightlyRate": rate})
    _wait_on_sale(story, stay)

    story.step("The first guest gets it, the second is told at once that it is sold out.")
    booking = {"name": "Guest2", "roomType": SUITE, "guestCnt": 2, **stay, "cardNo": GOOD_CARD}
    order = story.call("guest", "POST", "/orders", booking)
    story.expect("the order's status", order["status"], "PAID")
    refusal = story.call("guest", "POST", "/orders", booking, status=409)
    story.expect("the reason", refusal["details"][0]["reason"], "SOLD_OUT")
    story.behind(order["id"], "Ordered", "PaymentApproved", "ReservationTaken")

    story.step("The desk rejects the booking: the money goes back, and the suite is free again.")
    story.call("desk", "POST", f"/reservations/{order['id']}:reject", {"reason": "the suite is being painted"})
    page = story.behind(order["id"], "PaymentCanceled", "ReservationRejected")
    story.expect("My page's status", page["status"], "REJECTED")
    story.expect("the refund", page["refundedAmount"], page["amount"])


def _wait_on_sale(story: Story, stay: dict[str, str]) -> None:
    ends = time.monotonic() + WAIT_SECONDS
    path = f"/rooms?checkIn={stay['checkIn']}&checkOut={stay['checkOut']}&guestCnt=2"
    while True:
        answer = story.search(path)
        if any(room["roomType"] == SUITE and room["available"] for room in answer["rooms"]):
            return
        if time.monotonic() > ends:
            raise NotAsPromised(f"the suite is not on sale after {WAIT_SECONDS} s")
        time.sleep(0.05)


def _in_short(answer: dict[str, Any]) -> str:
    """The part of an answer that a reader wants to see."""
    if "rooms" in answer:
        return ", ".join(f"{room['roomType']}: {room['available']} free" for room in answer["rooms"])
    if "details" in answer:
        return f"{answer['details'][0]['reason']}: {answer['message']}"
    parts = [str(answer[key]) for key in ("status", "confirmationNo") if answer.get(key)]
    if error := answer.get("paymentError"):
        parts.append(f"{error['reason']} ({error['message']})")
    if "amount" in answer:
        parts.append(f"{answer['amount']['units']} {answer['amount']['currencyCode']}")
    if answer.get("refundedAmount", {}).get("units", "0") != "0":
        parts.append(f"refunded {answer['refundedAmount']['units']}")
    return ", ".join(parts) or str(answer.get("id", ""))
