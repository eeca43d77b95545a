#!/bin/sh
# Installs the real servers that the test suite starts privately on free ports: Valkey or Redis,
# PostgreSQL, RabbitMQ, Postfix with smtp-sink. Exim, OpenSMTPD and OpenDKIM are only unpacked, into
# .services/ beside this folder: as packages the mail servers exclude one another. Needs Debian's
# apt-get, and root for installing; without them it says what is missing and the suite skips those
# tests with the reason.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

install_packages() {
  missing=""
  have redis-server || have valkey-server || missing="$missing redis-server"
  ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
  { have rabbitmq-server || [ -x /usr/sbin/rabbitmq-server ]; } || missing="$missing rabbitmq-server"
  { [ -x /usr/sbin/postfix ] && [ -x /usr/sbin/smtp-sink ]; } || missing="$missing postfix"

  if [ -z "$missing" ]; then
    echo "services: all packages installed"
    return
  fi
  if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo "services: not installed:$missing"
    echo "services: as root on Debian: apt-get install -y$missing (their tests are skipped until then)"
    return
  fi
  echo "services: installing$missing"
  # No service may start by itself: the suite starts its own.
  guard=/usr/sbin/policy-rc.d
  if [ ! -e "$guard" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$guard"
    chmod 755 "$guard"
    trap 'rm -f "$guard"' EXIT
  fi
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  echo "services: installed$missing"
}

# Libraries that packages depend on and this machine lacks.
lacking() {
  apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances "$@" | sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: \(lib[^:< ]*\).*/\2/p' | sort -u |
    while read -r name; do
      state=$(dpkg-query -W -f='${db:Status-Abbrev}' "$name" 2>/dev/null || true)
      case "$state" in ii*) ;; *) echo "$name" ;; esac
    done
}

unpack_servers() {
  place=$(cd "$(dirname "$0")/.." && pwd)/.services
  if [ -x "$place/usr/sbin/exim4" ] && [ -x "$place/usr/sbin/smtpd" ] &&
    [ -x "$place/usr/sbin/opendkim" ]; then
    echo "services: all servers unpacked"
    return
  fi
  if ! have apt-get || ! have dpkg; then
    echo "services: Exim, OpenSMTPD and OpenDKIM are not unpacked: no apt-get (their tests are skipped)"
    return
  fi
  servers="exim4-daemon-light opensmtpd opendkim"
  # shellcheck disable=SC2086
  if ! apt-cache show $servers >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
  fi
  # shellcheck disable=SC2086
  libraries=$(lacking $servers)
  # shellcheck disable=SC2086
  [ -z "$libraries" ] || libraries=$(printf '%s\n' $libraries $(lacking $libraries) | sort -u)
  fresh="$place.new"
  rm -rf "$fresh"
  mkdir -p "$fresh/packages"
  # shellcheck disable=SC2086
  if ! (cd "$fresh/packages" &&
    apt-get download -qq -o APT::Sandbox::User="$(id -un)" $servers $libraries); then
    rm -rf "$fresh"
    echo "services: Exim, OpenSMTPD and OpenDKIM could not be downloaded (their tests are skipped)"
    return
  fi
  for package in "$fresh"/packages/*.deb; do
    dpkg -x "$package" "$fresh"
  done
  rm -rf "$fresh/packages" "$fresh/usr/share" "$place"
  mv "$fresh" "$place"
  echo "services: unpacked $servers to $place"
}

install_packages
unpack_servers
