"""One line a message on standard error, the same form in every process."""

import logging
import sys
import time


def configure_logging(role: str) -> None:
    """Sends our messages from INFO up and those of libraries from WARNING up to standard error."""
    formatter = logging.Formatter(f"%(asctime)sZ octet-{role} %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("service").setLevel(logging.INFO)
    logging.getLogger("__main__").setLevel(logging.INFO)
