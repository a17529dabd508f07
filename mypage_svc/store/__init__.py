"""Where pages are stored.

postgres  one row per order
"""

from mypage_svc.store.postgres import PostgresPages, UnitOfWork, open_work, page_of

__all__ = ["PostgresPages", "UnitOfWork", "open_work", "page_of"]
