#!/bin/sh
# Starts Waxwing in Complement's image; see Dockerfile. The runner does the same for processes without an image.
set -eu

tls=/data-tls
mkdir -p "$tls"
cat >"$tls/openssl.cnf" <<CONF
[req]
prompt = no
distinguished_name = name
x509_extensions = leaf
[name]
commonName = $SERVER_NAME
[leaf]
subjectAltName = DNS:$SERVER_NAME
basicConstraints = critical, CA:FALSE
keyUsage = digitalSignature
extendedKeyUsage = serverAuth
CONF
# A new one at each start: a committed container is started under another authority.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -config "$tls/openssl.cnf" \
    -CA /complement/ca/ca.crt -CAkey /complement/ca/ca.key -keyout "$tls/server.key" -out "$tls/server.crt" 2>/dev/null

sed -e "s|@SERVER_NAME@|$SERVER_NAME|g" -e "s|@ADDRESS@|0.0.0.0|g" -e "s|@DATA@|/data|g" \
    -e "s|@COMPLEMENT@|/complement|g" -e "s|@TLS@|$tls|g" /complement-image/homeserver.toml >/data/waxwing.toml

# Instead of this shell, so that a SIGTERM reaches the server.
exec waxwing serve --config /data/waxwing.toml
