/*
 * Addresses of other hosts as text, as they are shown and remembered, and networks that they are in: numeric,
 * and an IPv4 address that came through an IPv6 socket (::ffff:10.0.0.2) as what it is, 10.0.0.2.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define ADDRESS_SIZE 64 /* an IPv6 address, '%' and the name of an interface, NUL */

/* "localhost" for what has no address (a unix socket). */
void address_text(const struct sockaddr *address, socklen_t size, char text[ADDRESS_SIZE]);
/* Of a connected socket's two ends; "" where it has none any more. */
void address_of_peer(int socket, char text[ADDRESS_SIZE]);
void address_of_own_end(int socket, char text[ADDRESS_SIZE]);

/* Whether the name leads to the address (as address_text writes it). Waits for DNS. */
bool address_is_of(const char *name, const char *address);

/* A network, or one address as the network that has it alone. */
struct network {
	int family;        /* AF_INET or AF_INET6 */
	uint8_t first[16]; /* as in in_addr or in6_addr */
	unsigned bits;     /* that count */
};

/* "10.0.0.2", "10.0.0.0/24", "fd00::1", "fd00::/64"; false: it is neither. */
bool network_parse(const char *text, struct network *network);
/* `address`: as address_text writes it. */
bool network_has(const struct network *network, const char *address);
