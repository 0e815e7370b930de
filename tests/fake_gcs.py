"""A small Google Cloud Storage, in memory, for tests: what TensorStore, gcsfs and Google's client use of the JSON API.

    with Server("bucket") as server:
      os.environ.update(server.environment)
      server.objects["bucket"]         # {name: Stored}

It keeps what matters of the real one: there are no folders, an object appears whole or not at all and cannot be
appended to, a write may depend on a generation (ifGenerationMatch), and listings come in pages. It knows no rights.
"""

import base64
import datetime
import hashlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse
from typing import NamedTuple

PAGE = 7  # entries a page of a listing, at most: a small one, so that tests turn pages


class Stored(NamedTuple):
  data: bytes
  generation: int
  kind: str  # content type
  time: str


class Refused(Exception):
  """(HTTP status, message)."""


class Server:
  """The service and its buckets.

  Attributes:
    objects: {bucket: {name: Stored}}.
    requests: (method, path, query) of all that was asked, in order.
    refuse: a function (method, path and query) -> the HTTP status to refuse a request with, None to answer it.
  """

  def __init__(self, *buckets: str):
    self.objects: dict[str, dict[str, Stored]] = {bucket: {} for bucket in buckets}
    self.requests: list[tuple[str, str, dict]] = []
    self.refuse = lambda method, path: None
    self._lock, self._generations, self._uploads = threading.RLock(), itertools.count(1), {}
    server = self

    class Handler(_Handler):
      service = server

    self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._http.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._http.server_port}"
    self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

  @property
  def environment(self) -> dict[str, str]:
    """Environment variables that lead TensorStore, gcsfs and Google's client here, without credentials."""
    return {
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
      "STORAGE_EMULATOR_HOST": self.url,
      "NO_GCE_CHECK": "true",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks for the bucket's layout by gRPC, which is not spoken here
    }

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._http.shutdown()
    self._http.server_close()

  # --- what the API does ---------------------------------------------------------------------------------------------

  def bucket(self, name: str) -> dict[str, Stored]:
    if name not in self.objects:
      raise Refused(404, "The specified bucket does not exist.")
    return self.objects[name]

  def get(self, bucket: str, name: str, query: dict) -> Stored:
    with self._lock:
      stored = self.bucket(bucket).get(name)
      self._check(stored, query)
      if stored is None:
        raise Refused(404, f"No such object: {bucket}/{name}")
      return stored

  def put(self, bucket: str, name: str, data: bytes, kind: str, query: dict) -> dict:
    with self._lock:
      self._check(self.bucket(bucket).get(name), query)
      time = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
      stored = Stored(bytes(data), next(self._generations), kind, time)
      self.bucket(bucket)[name] = stored
      return resource(bucket, name, stored)

  def delete(self, bucket: str, name: str, query: dict):
    with self._lock:
      self.get(bucket, name, query)
      del self.bucket(bucket)[name]

  def copy(self, bucket: str, name: str, to_bucket: str, to: str, query: dict) -> dict:
    with self._lock:
      source = self.get(bucket, name, {})
      return self.put(to_bucket, to, source.data, source.kind, query)

  def compose(self, bucket: str, name: str, names: list[str], query: dict) -> dict:
    with self._lock:
      parts = [self.get(bucket, part, {}) for part in names]
      return self.put(bucket, name, b"".join(part.data for part in parts), parts[0].kind, query)

  def list(self, bucket: str, query: dict) -> dict:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    start, end = query.get("startOffset", ""), query.get("endOffset")
    with self._lock:
      entries = {}  # a name or a prefix -> the object, None of a prefix; in the order of names
      for name, stored in sorted(self.bucket(bucket).items()):
        if not name.startswith(prefix) or name < start or (end and name >= end):
          continue
        head, slash, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
        entries.setdefault(prefix + head + slash if slash else name, None if slash else stored)
    after = base64.b64decode(query["pageToken"]).decode() if "pageToken" in query else ""
    names = [name for name in entries if name > after]
    page = names[: min(PAGE, int(query.get("maxResults", PAGE)))]
    out = {"kind": "storage#objects"}
    out["items"] = [resource(bucket, name, entries[name]) for name in page if entries[name]]
    out["prefixes"] = [name for name in page if not entries[name]]
    if len(page) < len(names):
      out["nextPageToken"] = base64.b64encode(page[-1].encode()).decode()
    return {key: value for key, value in out.items() if value}

  def begin(self, *upload) -> str:
    """Begins a resumable upload of (bucket, name, content type, query); returns its id."""
    with self._lock:
      number = f"upload-{next(self._generations)}"
      self._uploads[number] = (bytearray(), upload)
      return number

  def continue_upload(self, number: str, data: bytes, content_range: str) -> dict | int:
    """Takes a chunk; returns the object once it is whole, else the number of bytes so far."""
    with self._lock:
      if number not in self._uploads:
        raise Refused(404, "No such upload")
      held, (bucket, name, kind, query) = self._uploads[number]
      first, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", content_range or f"bytes */{len(data)}").groups()
      if first is not None and int(first) != len(held):
        raise Refused(503, f"expected a chunk from {len(held)}")
      held += data
      if total == "*":
        if len(data) % 2**18:
          raise Refused(400, "a chunk before the last must be of multiples of 256 KiB")
        return len(held)
      if len(held) != int(total):
        raise Refused(400, f"{len(held)} bytes, not {total}")
      del self._uploads[number]
      return self.put(bucket, name, held, kind, query)

  def _check(self, stored: Stored | None, query: dict):
    have = stored.generation if stored else 0
    if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != have:
      raise Refused(412, "conditionNotMet: At least one of the pre-conditions you specified did not hold.")
    if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == have:
      raise Refused(304, "")
    if stored and "generation" in query and int(query["generation"]) != have:
      raise Refused(404, "No such generation")


def resource(bucket: str, name: str, stored: Stored) -> dict:
  return {
    "kind": "storage#object",
    "id": f"{bucket}/{name}/{stored.generation}",
    "name": name,
    "bucket": bucket,
    "generation": str(stored.generation),
    "metageneration": "1",
    "contentType": stored.kind,
    "storageClass": "STANDARD",
    "size": str(len(stored.data)),
    "md5Hash": base64.b64encode(hashlib.md5(stored.data).digest()).decode(),
    "timeCreated": stored.time,
    "updated": stored.time,
  }


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  wbufsize = -1  # one packet an answer
  disable_nagle_algorithm = True
  service: Server

  def log_message(self, *_):
    pass

  def handle_one_request(self):
    try:
      super().handle_one_request()
    except (ConnectionError, BrokenPipeError):  # a client that was killed
      self.close_connection = True

  def _handle(self):
    path, _, query = self.path.partition("?")
    query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    body = self._body()
    self.service.requests.append((self.command, urllib.parse.unquote(path), query))
    try:
      # A multipart upload has its name in the body.
      if status := self.service.refuse(self.command, urllib.parse.unquote(self.path) + body[:500].decode("latin-1")):
        raise Refused(status, "refused by the test")
      # Names come percent-encoded, so the slashes that are left are the path's own.
      parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
      match (self.command, *parts):
        case ("POST" | "PUT", "upload", "storage", "v1", "b", bucket, "o"):
          self._upload(bucket, query, body)
        case ("GET", ("storage" | "download"), *rest) if rest[-4:-3] == ["b"] and rest[-2] == "o":
          stored = self.service.get(rest[-3], rest[-1], query)
          if query.get("alt") == "media":
            self._media(stored)
          else:
            self._answer(200, resource(rest[-3], rest[-1], stored))
        case ("GET", "storage", "v1", "b", bucket, "o"):
          self._answer(200, self.service.list(bucket, query))
        case ("GET", "storage", "v1", "b", bucket):
          self.service.bucket(bucket)
          self._answer(200, {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "HERE"})
        case ("DELETE", "storage", "v1", "b", bucket, "o", name):
          self.service.delete(bucket, name, query)
          self._answer(204)
        case ("POST", "storage", "v1", "b", bucket, "o", name, "rewriteTo", "b", to_bucket, "o", to):
          made = self.service.copy(bucket, name, to_bucket, to, query)
          sizes = {"totalBytesRewritten": made["size"], "objectSize": made["size"]}
          self._answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": made, **sizes})
        case ("POST", "storage", "v1", "b", bucket, "o", name, "copyTo", "b", to_bucket, "o", to):
          self._answer(200, self.service.copy(bucket, name, to_bucket, to, query))
        case ("POST", "storage", "v1", "b", bucket, "o", name, "moveTo", "o", to):
          made = self.service.copy(bucket, name, bucket, to, query)
          if name != to:
            self.service.delete(bucket, name, {})
          self._answer(200, made)
        case ("POST", "storage", "v1", "b", bucket, "o", name, "compose"):
          names = [source["name"] for source in json.loads(body)["sourceObjects"]]
          self._answer(200, self.service.compose(bucket, name, names, query))
        case _:
          raise Refused(501, f"{self.command} {self.path}: not in this fake")
    except Refused as error:
      status, message = error.args
      self._answer(status, {"error": {"code": status, "message": message, "errors": [{"message": message}]}})

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

  def _upload(self, bucket: str, query: dict, body: bytes):
    kind = self.headers.get("Content-Type", "application/octet-stream")
    match query.get("uploadType"):
      case "media":
        self._answer(200, self.service.put(bucket, query["name"], body, kind, query))
      case "multipart":
        boundary = b"--" + re.search(r'boundary="?([^";]+)', kind).group(1).encode()
        _, about, data, _ = re.split(rb"(?:\r?\n)?" + re.escape(boundary) + rb"(?:--)?(?:\r?\n)?", body, maxsplit=3)
        about = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])
        head, data = re.split(rb"\r?\n\r?\n", data, maxsplit=1)
        kind = re.search(rb"(?i)content-type: *([^\r\n]*)", head).group(1).decode()
        self._answer(200, self.service.put(bucket, about["name"], data, kind, query))
      case "resumable" if "upload_id" not in query:
        self.service.bucket(bucket)
        kind = self.headers.get("X-Upload-Content-Type", "application/octet-stream")
        name = query.get("name") or json.loads(body)["name"]
        number = self.service.begin(bucket, name, kind, query)
        place = f"{self.service.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
        self._answer(200, headers={"Location": place})
      case "resumable":
        done = self.service.continue_upload(query["upload_id"], body, self.headers.get("Content-Range"))
        if isinstance(done, dict):
          self._answer(200, done)
        else:
          self._answer(308, headers={"Range": f"bytes=0-{done - 1}"} if done else {})
      case other:
        raise Refused(400, f"uploadType {other}")

  def _media(self, stored: Stored):
    data, size = stored.data, len(stored.data)
    headers = {"x-goog-generation": str(stored.generation), "Content-Type": stored.kind}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
    if not asked:
      return self._answer(200, data, headers)
    first, last = asked.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size:
      raise Refused(416, "The requested range cannot be satisfied.")
    self._answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})

  def _body(self) -> bytes:
    if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    out = b""
    while size := int(self.rfile.readline().split(b";")[0], 16):
      out += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return out

  def _answer(self, status: int, body: dict | bytes = b"", headers: dict | None = None):
    headers = dict(headers or {})
    if isinstance(body, dict):
      body, headers["Content-Type"] = json.dumps(body).encode(), "application/json; charset=UTF-8"
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    if status not in (204, 304):
      self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if status not in (204, 304):
      self.wfile.write(body)
