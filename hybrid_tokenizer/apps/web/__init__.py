"""What the voting app and the demo page share: serving, limits on connections and requests, pages, and a work queue."""
