#include "comm/tcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// ---- sockets ------------------------------------------------------------------------------------------------------

void tcp_prepare(int socket) {
    int one = 1, idle = 30, interval = 10, probes = 3; // a machine that is switched off is missed after a minute
    fcntl(socket, F_SETFL, O_NONBLOCK);
    fcntl(socket, F_SETFD, FD_CLOEXEC);
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    // Buffers are left to the system, which lets them grow further than a program may ask.
}

TcpLimit tcp_limit(double seconds) {
    const double longest_step = 0.75; // more than a poll takes
    return (TcpLimit){comm_patience(longest_step), seconds};
}

double tcp_left(TcpLimit *limit) {
    if (limit == NULL) return 0;
    double left = limit->seconds - comm_patience_spent(&limit->patience);
    return left > 0 ? left : 0;
}

int tcp_milliseconds_to_poll(TcpLimit *limit) {
    double left = tcp_left(limit);
    return left == 0 ? 0 : left < 0.5 ? 1 + (int)(1e3 * left) : 500;
}

// Until the socket is ready. False: error; ETIMEDOUT: time is up.
static bool wait_until_ready(int socket, short events, TcpLimit *limit) {
    while (tcp_left(limit) > 0) {
        struct pollfd one = {socket, events, 0};
        int n = poll(&one, 1, tcp_milliseconds_to_poll(limit));
        if (n > 0) return true;
        if (n < 0 && errno != EINTR) return false;
    }
    errno = ETIMEDOUT;
    return false;
}

ssize_t tcp_take(int socket, void *to, size_t bytes) {
    ssize_t n;
    do n = recv(socket, to, bytes, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
    if (n == 0) errno = 0;
    return n > 0 ? n : -1;
}

bool tcp_read_all(int socket, void *to, size_t bytes, TcpLimit *limit) {
    for (size_t have = 0; have < bytes;) {
        if (!wait_until_ready(socket, POLLIN, limit)) return false;
        ssize_t n = tcp_take(socket, (char *)to + have, bytes - have);
        if (n < 0) return false;
        have += (size_t)n;
    }
    return true;
}

bool tcp_write_all(int socket, const void *from, size_t bytes, TcpLimit *limit) {
    for (size_t gone = 0; gone < bytes;) {
        ssize_t n = send(socket, (const char *)from + gone, bytes - gone, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) gone += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_until_ready(socket, POLLOUT, limit)) return false;
        } else if (errno != EINTR) return false;
    }
    return true;
}

static int fail_with(int socket, int error) {
    if (socket >= 0) close(socket);
    errno = error;
    return -1;
}

// A port that nobody listens on may answer a call that happens to come from that very port: the caller itself.
static bool connected_to_itself(int socket) {
    struct sockaddr_storage mine = {0}, its = {0};
    socklen_t my_length = sizeof mine, its_length = sizeof its;
    if (getsockname(socket, (struct sockaddr *)&mine, &my_length) != 0) return false;
    if (getpeername(socket, (struct sockaddr *)&its, &its_length) != 0) return false;
    return my_length == its_length && memcmp(&mine, &its, my_length) == 0;
}

int tcp_connect(const struct sockaddr *address, socklen_t length, TcpLimit *limit) {
    int made = socket(address->sa_family, SOCK_STREAM, 0), error = 0;
    socklen_t error_length = sizeof error;
    if (made < 0) return -1;
    tcp_prepare(made);
    if (connect(made, address, length) != 0) {
        if (errno != EINPROGRESS && errno != EINTR) return fail_with(made, errno);
        if (!wait_until_ready(made, POLLOUT, limit)) return fail_with(made, errno);
        if (getsockopt(made, SOL_SOCKET, SO_ERROR, &error, &error_length) != 0) error = errno;
        if (error != 0) return fail_with(made, error);
    }
    return connected_to_itself(made) ? fail_with(made, ECONNREFUSED) : made;
}

int tcp_listen(const struct sockaddr *address, socklen_t length) {
    int made = socket(address->sa_family, SOCK_STREAM, 0), one = 1, zero = 0;
    if (made < 0) return -1;
    tcp_prepare(made);
    setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one); // not kept waiting by connections of an earlier run
    if (address->sa_family == AF_INET6) setsockopt(made, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    if (bind(made, address, length) != 0 || listen(made, SOMAXCONN) != 0) return fail_with(made, errno);
    return made;
}

// ---- addresses ----------------------------------------------------------------------------------------------------

socklen_t tcp_address_length(const SocketAddress *a) {
    return a->any.sa_family == AF_INET6 ? sizeof a->v6 : sizeof a->v4;
}

SocketAddress tcp_wildcard(int family) {
    SocketAddress all = {.room = {0}};
    all.any.sa_family = (sa_family_t)family;
    if (family == AF_INET6) all.v6.sin6_addr = in6addr_any;
    return all;
}

void tcp_set_port(SocketAddress *a, int port) {
    if (a->any.sa_family == AF_INET6) a->v6.sin6_port = htons((uint16_t)port);
    else a->v4.sin_port = htons((uint16_t)port);
}

Address tcp_pack(const SocketAddress *a) {
    Address packed = {.family = a->any.sa_family == AF_INET6 ? 6 : 4};
    if (packed.family == 6) memcpy(packed.bytes, &a->v6.sin6_addr, 16);
    else memcpy(packed.bytes, &a->v4.sin_addr, 4);
    packed.port = ntohs(packed.family == 6 ? a->v6.sin6_port : a->v4.sin_port);
    return packed;
}

SocketAddress tcp_unpack(const Address *packed) {
    SocketAddress a = {.room = {0}};
    a.any.sa_family = packed->family == 6 ? AF_INET6 : AF_INET;
    if (packed->family == 6) memcpy(&a.v6.sin6_addr, packed->bytes, 16);
    else memcpy(&a.v4.sin_addr, packed->bytes, 4);
    tcp_set_port(&a, (int)packed->port);
    return a;
}

bool tcp_is_loopback(const Address *a) {
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}; // an IPv4 address in an IPv6 one
    if (a->family == 4) return a->bytes[0] == 127;
    if (memcmp(a->bytes, mapped, sizeof mapped) == 0) return a->bytes[12] == 127;
    return memcmp(a->bytes, &in6addr_loopback, 16) == 0;
}

bool tcp_is_literal(const char *address) {
    uint8_t bytes[16];
    return inet_pton(AF_INET, address, bytes) == 1 || inet_pton(AF_INET6, address, bytes) == 1 ||
           strcmp(address, "localhost") == 0;
}

// Of this machine, by the name it has for itself.
static bool is_own_name(const char *address) {
    char name[256] = "";
    return gethostname(name, sizeof name - 1) == 0 && strcmp(name, address) == 0;
}

// localhost needs no /etc/hosts and no server to ask: without a name, getaddrinfo gives the loopback addresses.
int tcp_look_up(const char *address, int port, struct addrinfo **found) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    if (strcmp(address, "localhost") == 0) return getaddrinfo(NULL, service, &hints, found);
    int code = getaddrinfo(address, service, &hints, found);
    return code != 0 && is_own_name(address) ? getaddrinfo(NULL, service, &hints, found) : code;
}
