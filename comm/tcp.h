// TCP sockets and their addresses, as far as ranks need them to find each other. Private to comm/.
//
// All sockets are non-blocking. Errors are errno's.
#ifndef COMM_TCP_H
#define COMM_TCP_H

#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "comm/engine.h"

typedef union SocketAddress {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage room;
} SocketAddress;

typedef struct Address { // of a port, as it travels
    uint32_t family;     // 4 or 6
    uint32_t port;
    uint8_t bytes[16];
} Address;

typedef struct TcpLimit { // time for many waits together, in which the program was not stopped
    CommPatience patience;
    double seconds;
} TcpLimit;
TcpLimit tcp_limit(double seconds);
double tcp_left(TcpLimit *limit);              // seconds; of NULL: 0
int tcp_milliseconds_to_poll(TcpLimit *limit); // a part of what is left, so that time is counted

void tcp_prepare(int socket);                                                       // one that was not made here
int tcp_connect(const struct sockaddr *address, socklen_t length, TcpLimit *limit); // -1: error
int tcp_listen(const struct sockaddr *address, socklen_t length);                   // -1: error
// Bytes that are there at once. 0: none yet; -1: the connection has ended (errno 0: by the other side).
ssize_t tcp_take(int socket, void *to, size_t bytes);
bool tcp_read_all(int socket, void *to, size_t bytes, TcpLimit *limit);
bool tcp_write_all(int socket, const void *from, size_t bytes, TcpLimit *limit);

socklen_t tcp_address_length(const SocketAddress *address);
SocketAddress tcp_wildcard(int family); // all addresses of this machine, port 0
void tcp_set_port(SocketAddress *address, int port);
Address tcp_pack(const SocketAddress *address);
SocketAddress tcp_unpack(const Address *packed);
bool tcp_is_loopback(const Address *address);
// Whether this is an address (or localhost), and not a name whose meaning may differ from machine to machine.
bool tcp_is_literal(const char *address);
// As getaddrinfo. localhost, and the machine's own name where nothing knows it, are the loopback addresses.
int tcp_look_up(const char *address, int port, struct addrinfo **found);

#endif
