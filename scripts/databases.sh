#!/usr/bin/env bash
# PostgreSQL, MariaDB and Redis for the tests: installed where they are missing (Debian, as root), started where they
# are stopped, and waited for. Where all three answer it does nothing. Nothing here is for production: it lets the
# superusers of PostgreSQL and MariaDB in from this host without a password.
set -euo pipefail

export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" # where Debian keeps servers
within=60 # seconds for each server to answer

say() { echo "databases: $*"; }
root() { [ "$(id -u)" = 0 ]; }
have() { command -v "$1" >/dev/null 2>&1; }
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

need() { # command, package, variable: install the package when the command is missing
    have "$1" && return 0
    if ! root || ! have apt-get; then
        say "$2 is missing and cannot be installed here (needs root and apt-get); install it, or point to one with $3"
        return 1
    fi
    say "installing $2"
    [ -n "${updated:-}" ] || { apt-get update -qq && updated=1; } || say "apt-get update failed; trying with the lists at hand"
    # Debian's packages start their servers, under systemd whatever we say: each function below looks again.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$2" >/dev/null || {
        say "apt-get could not install $2; its words are above"
        return 1
    }
    have "$1" || { say "$2 is installed, and $1 is still not to be found"; return 1; }
}

await() { # name, test...: wait until a command succeeds
    local name=$1 started=$SECONDS
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS - started >= within)); then
            say "$name did not answer within $within s"
            return 1
        fi
        sleep 0.2
    done
}

postgresql_answers() { psql -qAt -h 127.0.0.1 -U postgres -c "SELECT 1" postgres; }
mariadb_answers() { mariadb -h 127.0.0.1 -P 3306 -u root -e "SELECT 1"; }
redis_answers() { [ "$(redis-cli -h 127.0.0.1 ping)" = PONG ]; }

as() { # user, command...
    local user=$1
    shift
    if have runuser; then runuser -u "$user" -- "$@"; else su -s /bin/bash "$user" -c "$(printf '%q ' "$@")"; fi
}

postgresql() {
    PGPASSWORD="" postgresql_answers >/dev/null 2>&1 && return 0
    need pg_ctlcluster postgresql ONEBEAT_TEST_POSTGRESQL || return 1
    root || { say "PostgreSQL does not answer and only root may start it"; return 1; }
    local version
    version=$(find /etc/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort -V | tail -n 1)
    local rules=/etc/postgresql/$version/main/pg_hba.conf
    # Inside "postgresql || …" nothing stops at a failing command: what the rest relies on is asked for here.
    [ -r "$rules" ] || { say "PostgreSQL has no cluster 'main' in /etc/postgresql; make one with pg_createcluster"; return 1; }
    if ! grep -q "onebeat tests" "$rules"; then # the first matching line decides
        local rest
        rest=$(cat "$rules") || return 1
        printf 'host all postgres 127.0.0.1/32 trust # onebeat tests\n%s\n' "$rest" >"$rules"
    fi
    if listening 5432; then
        pg_ctlcluster --skip-systemctl-redirect "$version" main reload
    else
        say "starting PostgreSQL $version"
        pg_ctlcluster --skip-systemctl-redirect "$version" main start
    fi
    await PostgreSQL postgresql_answers
}

mariadb_server() {
    mariadb_answers >/dev/null 2>&1 && return 0
    need mariadbd mariadb-server ONEBEAT_TEST_MARIADB || return 1
    have mariadb || { say "MariaDB's server is here and its client is not; install mariadb-client"; return 1; }
    root || { say "MariaDB does not answer and only root may start it"; return 1; }
    if ! listening 3306; then
        say "starting MariaDB"
        mkdir -p /run/mysqld && chown mysql:mysql /run/mysqld
        # Debian's own files name no user, and mariadbd refuses to be root.
        start-stop-daemon --start --oknodo --background --exec "$(command -v mariadbd)" -- --user=mysql
        await MariaDB mariadb -e "SELECT 1" || return 1
    fi
    mariadb -e "ALTER USER 'root'@'localhost' IDENTIFIED VIA unix_socket OR mysql_native_password USING PASSWORD('')" ||
        say "MariaDB's root may not be let in without a password; its words are above"
    await "MariaDB over TCP" mariadb_answers
}

redis() {
    redis_answers >/dev/null 2>&1 && return 0
    need redis-server redis-server ONEBEAT_TEST_REDIS || return 1
    redis_answers >/dev/null 2>&1 && return 0 # its package started it
    have redis-cli || { say "Redis' server is here and its client is not; install redis-tools"; return 1; }
    say "starting Redis"
    redis-server --daemonize yes --bind 127.0.0.1 --save "" --appendonly no --dir /tmp >/dev/null
    await Redis redis_answers
}

failed=""
postgresql || failed="$failed PostgreSQL(ONEBEAT_TEST_POSTGRESQL=postgresql://user:password@host:5432/postgres)"
mariadb_server || failed="$failed MariaDB(ONEBEAT_TEST_MARIADB=mysql://user:password@host:3306/mysql)"
redis || failed="$failed Redis(ONEBEAT_TEST_REDIS=redis://host:6379/0)"
if [ -n "$failed" ]; then
    say "not ready:$failed"
    exit 1
fi
say "PostgreSQL, MariaDB and Redis answer"
