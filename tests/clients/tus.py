"""Uploads a file by tuspy, going on with what an earlier run has begun, each chunk with its checksum.

It kills itself in the midst when so many bytes were sent, if that is asked for.

tus.py ENDPOINT FILE KEY CHUNK_BYTES URL_STORAGE [DIE_AFTER]
"""
import os
import signal
import sys

from tusclient import client
from tusclient.storage import filestorage

endpoint, path, key, chunk_bytes, storage = sys.argv[1:6]
die_after = int(sys.argv[6]) if len(sys.argv) > 6 else None

uploader = client.TusClient(endpoint).uploader(
    file_path=path,
    chunk_size=int(chunk_bytes),
    metadata={"filename": key, "filetype": "video/mp2t"},
    store_url=True,
    url_storage=filestorage.FileStorage(storage),
    upload_checksum=True,
)
if die_after is not None:
    uploader.upload(stop_at=die_after)
    os.kill(os.getpid(), signal.SIGKILL)
uploader.upload()
print(uploader.url)
