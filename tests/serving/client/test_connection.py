"""TLS and headers, on a server with a certificate of its own: what a proxy before Triton sees."""

import asyncio
import datetime
import ipaddress
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
import pytest
import tritonclient.grpc.service_pb2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tritonclient.grpc import service_pb2_grpc

from emuflow_client import AsyncGeneratorClient, GeneratorClient, ServerFault, Unavailable

messages: Any = tritonclient.grpc.service_pb2


class Telling(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each request with an error that tells the token which came with it."""

    def ModelStreamInfer(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        next(request_iterator)
        sent = {str(name): str(value) for name, value in context.invocation_metadata()}
        yield messages.ModelStreamInferResponse(error_message=f"token {sent.get('authorization')}")


class Proxy(NamedTuple):
    endpoint: str
    authority: bytes


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Telling(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(private, public)]))
    server.start()
    yield Proxy(f"127.0.0.1:{port}", public)
    server.stop(0)


def test_a_trusted_certificate_is_taken_and_headers_arrive(proxy):
    headers = {"Authorization": "Bearer abc"}
    with (
        GeneratorClient(proxy.endpoint, tls=proxy.authority, headers=headers) as client,
        pytest.raises(ServerFault, match="token Bearer abc"),
    ):
        client.generate("a red seven")

    async def ask() -> None:
        async with AsyncGeneratorClient(proxy.endpoint, tls=proxy.authority, headers=headers) as client:
            await client.generate("a red seven")

    with pytest.raises(ServerFault, match="token Bearer abc"):
        asyncio.run(ask())


@pytest.mark.parametrize("tls", [True, False])
def test_an_unknown_certificate_and_a_plain_connection_are_refused(proxy, tls):
    with (
        GeneratorClient(proxy.endpoint, tls=tls, timeout_s=3, retries=0) as client,
        pytest.raises(Unavailable),
    ):
        client.generate("a red seven")


def test_the_header_that_ends_the_server_is_not_sent():
    with pytest.raises(ValueError, match="triton_grpc_error"):
        GeneratorClient("127.0.0.1:1", headers={"Triton_gRPC_error": "true"})
