"""What mypage_svc stores. Pages are in PostgreSQL or in NATS; everything else is in PostgreSQL.

postgres    pages in a table: one row per order
nats_pages  pages in NATS
buckets     a key-value bucket of pages
facts       the form that both give to facts
changes     which pages have changed
messages    one row for each change of state that a guest is told of
numbers     whose phone numbers are kept, and until when
work        the unit of work of a batch of events
"""

from mypage_svc.store.buckets import PageBucket, list_keys
from mypage_svc.store.changes import Changes
from mypage_svc.store.facts import from_json
from mypage_svc.store.messages import PostgresMessages
from mypage_svc.store.nats_pages import PLACE, Buckets, NatsPages
from mypage_svc.store.numbers import PostgresNumbers, numbers_in
from mypage_svc.store.postgres import PostgresPages, page_of
from mypage_svc.store.work import UnitOfWork, open_work

__all__ = [
    "PLACE",
    "Buckets",
    "Changes",
    "NatsPages",
    "PageBucket",
    "PostgresMessages",
    "PostgresNumbers",
    "PostgresPages",
    "UnitOfWork",
    "from_json",
    "list_keys",
    "numbers_in",
    "open_work",
    "page_of",
]
