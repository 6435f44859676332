"""Who is asked, in what order, and how one request goes across providers."""
