#include "carry/allow.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <regex.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static bool admits(const char *pattern, const char *text)
{
	regmatch_t match;
	regex_t compiled;
	bool found;

	if (!text[0] || regcomp(&compiled, pattern, REG_EXTENDED) != 0)
		return false;
	found = regexec(&compiled, text, 1, &match, 0) == 0 && match.rm_so == 0;
	regfree(&compiled);
	return found;
}

int allow_check(const json_t *patterns, const char *name, const char *address, struct error *error)
{
	if (json_array_size(patterns) == 0)
		return 0;
	for (size_t i = 0; i < json_array_size(patterns); i++) {
		const char *pattern = json_string_value(json_array_get(patterns, i));

		if (pattern && (admits(pattern, name) || admits(pattern, address)))
			return 0;
	}
	return error_set(error, EACCES,
		"%s%s%s%s may not relocate guests to this host (xend-relocation-hosts-allow).",
		name[0] ? name : address, name[0] ? " (" : "", name[0] ? address : "", name[0] ? ")" : "");
}

/* ::ffff:10.0.0.2 is 10.0.0.2. */
static void unmap_address(struct sockaddr_storage *address, socklen_t *size)
{
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)(void *)address;
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = six->sin6_port};

	if (address->ss_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&six->sin6_addr))
		return;
	memcpy(&four.sin_addr, six->sin6_addr.s6_addr + 12, sizeof(four.sin_addr));
	memcpy(address, &four, sizeof(four));
	*size = sizeof(four);
}

static bool confirmed(const char *name, const char *address, int family)
{
	const struct addrinfo hints = {.ai_family = family, .ai_socktype = SOCK_STREAM};
	struct addrinfo *all = NULL;
	bool found = false;

	if (getaddrinfo(name, NULL, &hints, &all) != 0)
		return false;
	for (const struct addrinfo *one = all; one && !found; one = one->ai_next) {
		char text[NI_MAXHOST];

		found = getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof(text), NULL, 0,
				NI_NUMERICHOST) == 0 &&
			strcmp(text, address) == 0;
	}
	freeaddrinfo(all);
	return found;
}

int allow_peer(int socket, const json_t *patterns, char peer[PEER_NAME_MAX], struct error *error)
{
	struct sockaddr_storage address = {0};
	socklen_t size = sizeof(address);
	char number[NI_MAXHOST] = "", name[NI_MAXHOST] = "";

	if (getpeername(socket, (struct sockaddr *)&address, &size) < 0)
		return error_set(error, errno, "The peer is gone already: %s.", strerror(errno));
	if (address.ss_family == AF_UNIX) {
		snprintf(number, sizeof(number), "localhost");
	} else {
		unmap_address(&address, &size);
		if (getnameinfo((struct sockaddr *)&address, size, number, sizeof(number), NULL, 0,
			    NI_NUMERICHOST) != 0)
			return error_set(error, EINVAL, "The peer's address cannot be told.");
		if (json_array_size(patterns) &&
			getnameinfo((struct sockaddr *)&address, size, name, sizeof(name), NULL, 0,
				NI_NAMEREQD) == 0 &&
			!confirmed(name, number, address.ss_family))
			name[0] = '\0';
	}
	if (name[0])
		snprintf(peer, PEER_NAME_MAX, "%.512s (%.512s)", name, number);
	else
		snprintf(peer, PEER_NAME_MAX, "%.512s", number);
	return allow_check(patterns, name, number, error);
}
