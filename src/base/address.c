#include "base/address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void address_text(const struct sockaddr *address, socklen_t size, char text[ADDRESS_SIZE])
{
	struct sockaddr_in four = {.sin_family = AF_INET};

	if (address->sa_family == AF_INET6 && size >= sizeof(struct sockaddr_in6)) {
		const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)(const void *)address;

		if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
			memcpy(&four.sin_addr, six->sin6_addr.s6_addr + 12, sizeof(four.sin_addr));
			address = (const struct sockaddr *)&four;
			size = sizeof(four);
		}
	}
	if (getnameinfo(address, size, text, ADDRESS_SIZE, NULL, 0, NI_NUMERICHOST) != 0 ||
		address->sa_family == AF_UNIX)
		snprintf(text, ADDRESS_SIZE, "localhost");
}

static void end_text(int socket, int (*end)(int, struct sockaddr *, socklen_t *), char text[ADDRESS_SIZE])
{
	struct sockaddr_storage address = {0};
	socklen_t size = sizeof(address);

	text[0] = '\0';
	if (end(socket, (struct sockaddr *)&address, &size) == 0)
		address_text((struct sockaddr *)&address, size, text);
}

void address_of_peer(int socket, char text[ADDRESS_SIZE])
{
	end_text(socket, getpeername, text);
}

void address_of_own_end(int socket, char text[ADDRESS_SIZE])
{
	end_text(socket, getsockname, text);
}

bool address_is_of(const char *name, const char *address)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *all = NULL;
	bool found = false;

	if (getaddrinfo(name, NULL, &hints, &all) != 0)
		return false;
	for (const struct addrinfo *one = all; one && !found; one = one->ai_next) {
		char text[ADDRESS_SIZE];

		address_text(one->ai_addr, one->ai_addrlen, text);
		found = strcmp(text, address) == 0;
	}
	freeaddrinfo(all);
	return found;
}

/* ::ffff:10.0.0.2 is 10.0.0.2, and 96 bits of its network are what says so. */
static void unmap(struct network *network)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

	if (network->family != AF_INET6 || network->bits < 96 ||
		memcmp(network->first, mapped, sizeof(mapped)) != 0)
		return;
	network->family = AF_INET;
	network->bits -= 96;
	memmove(network->first, network->first + sizeof(mapped), 4);
}

bool network_parse(const char *text, struct network *network)
{
	const char *slash = strchr(text, '/');
	size_t length = slash ? (size_t)(slash - text) : strlen(text);
	char address[INET6_ADDRSTRLEN], *end = NULL;
	unsigned long bits;

	*network = (struct network){0};
	if (length >= sizeof(address))
		return false;
	memcpy(address, text, length);
	address[length] = '\0';
	if (inet_pton(AF_INET, address, network->first) == 1)
		network->family = AF_INET;
	else if (inet_pton(AF_INET6, address, network->first) == 1)
		network->family = AF_INET6;
	else
		return false;
	network->bits = network->family == AF_INET ? 32 : 128;
	if (slash) {
		bits = strtoul(slash + 1, &end, 10);
		if (slash[1] < '0' || slash[1] > '9' || *end || bits > network->bits)
			return false;
		network->bits = (unsigned)bits;
	}
	unmap(network);
	return true;
}

bool network_has(const struct network *network, const char *address)
{
	char plain[ADDRESS_SIZE];
	struct network one;
	unsigned bytes = network->bits / 8, rest = network->bits % 8;

	/* Which of our interfaces a link-local address is on (fe80::1%eth0) is no part of it. */
	snprintf(plain, sizeof(plain), "%.*s", (int)strcspn(address, "%"), address);
	if (strchr(plain, '/') || !network_parse(plain, &one) || one.family != network->family)
		return false;
	return memcmp(one.first, network->first, bytes) == 0 &&
	       (rest == 0 || ((one.first[bytes] ^ network->first[bytes]) >> (8 - rest)) == 0);
}
