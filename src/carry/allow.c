#include "carry/allow.h"
#include "base/address.h"

#include <errno.h>
#include <netdb.h>
#include <regex.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static bool admits(const char *pattern, const char *text)
{
	struct network network;
	regmatch_t match;
	regex_t compiled;
	bool found;

	if (network_parse(pattern, &network))
		return network_has(&network, text);
	if (!text[0] || regcomp(&compiled, pattern, REG_EXTENDED | REG_ICASE) != 0)
		return false;
	/* Of the matches that begin first it is the longest one (regex(7)): the whole text, if that is one.
	 */
	found = regexec(&compiled, text, 1, &match, 0) == 0 && match.rm_so == 0 && !text[match.rm_eo];
	regfree(&compiled);
	return found;
}

static bool any_admits(const json_t *patterns, const char *text)
{
	for (size_t i = 0; i < json_array_size(patterns); i++) {
		const char *pattern = json_string_value(json_array_get(patterns, i));

		if (pattern && admits(pattern, text))
			return true;
	}
	return false;
}

/* Whether a name could make a difference. */
static bool any_is_about_names(const json_t *patterns)
{
	for (size_t i = 0; i < json_array_size(patterns); i++) {
		const char *pattern = json_string_value(json_array_get(patterns, i));
		struct network network;

		if (pattern && !network_parse(pattern, &network))
			return true;
	}
	return false;
}

int allow_check(const json_t *patterns, const char *name, const char *address, struct error *error)
{
	if (json_array_size(patterns) == 0 || any_admits(patterns, address) ||
		(name[0] && any_admits(patterns, name)))
		return 0;
	return error_set(error, EACCES,
		"%s%s%s%s may not relocate guests to this host (xend-relocation-hosts-allow).",
		name[0] ? name : address, name[0] ? " (" : "", name[0] ? address : "", name[0] ? ")" : "");
}

/* The name that the address has, and that has the address; "" where there is none. */
static void name_of(const char *address, char name[NI_MAXHOST])
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
	struct addrinfo *number = NULL;

	name[0] = '\0';
	if (getaddrinfo(address, NULL, &hints, &number) != 0)
		return;
	if (getnameinfo(number->ai_addr, number->ai_addrlen, name, NI_MAXHOST, NULL, 0, NI_NAMEREQD) != 0 ||
		!address_is_of(name, address))
		name[0] = '\0';
	freeaddrinfo(number);
}

int allow_peer(int socket, const json_t *patterns, char peer[PEER_NAME_MAX], struct error *error)
{
	char number[ADDRESS_SIZE], name[NI_MAXHOST] = "";

	address_of_peer(socket, number);
	if (!number[0])
		return error_set(error, ENOTCONN, "The peer is gone already.");
	if (json_array_size(patterns) && !any_admits(patterns, number) && any_is_about_names(patterns))
		name_of(number, name);
	if (name[0])
		snprintf(peer, PEER_NAME_MAX, "%.512s (%s)", name, number);
	else
		snprintf(peer, PEER_NAME_MAX, "%s", number);
	return allow_check(patterns, name, number, error);
}
