"""What operators see at `/`: one page, and the feed that keeps it live.

What happened (`happenings`), what it all looks like now (`snapshot`), how it gets to the page
(`feed`), the page itself (`page.html`, served by `page`), and where it all is (`endpoints`).
Changing something is the affair of `aigateway.server.http.operator`.
"""
