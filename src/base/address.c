#include "base/address.h"

#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
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
