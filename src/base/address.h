/*
 * Addresses of other hosts as text, as they are compared, shown and remembered: numeric, and an IPv4 address
 * that came through an IPv6 socket (::ffff:10.0.0.2) as what it is, 10.0.0.2.
 */
#pragma once

#include <sys/socket.h>

#define ADDRESS_SIZE 64 /* an IPv6 address, '%' and the name of an interface, NUL */

/* "localhost" for what has no address (a unix socket). */
void address_text(const struct sockaddr *address, socklen_t size, char text[ADDRESS_SIZE]);
/* Of a connected socket's two ends; "" where it has none any more. */
void address_of_peer(int socket, char text[ADDRESS_SIZE]);
void address_of_own_end(int socket, char text[ADDRESS_SIZE]);
