"""What mypage_svc stores in PostgreSQL.

postgres  pages: one row per order
messages  one row for each change of state that a guest is told of
"""

from mypage_svc.store.messages import PostgresMessages
from mypage_svc.store.postgres import PostgresPages, UnitOfWork, open_work, page_of

__all__ = ["PostgresMessages", "PostgresPages", "UnitOfWork", "open_work", "page_of"]
