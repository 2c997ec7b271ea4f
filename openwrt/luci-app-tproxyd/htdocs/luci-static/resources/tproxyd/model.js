'use strict';
'require baseclass';

/*
 * What can be thought without a router: links, the text of a configuration, which rule hides which, who uses what.
 * Touches neither the page nor the network.
 */

const ALL = { proto: [ 'tcp', 'udp' ], family: [ 'ipv4', 'ipv6' ] };

const KINDS = [
	'proto', 'family', 'device', 'network', 'src_ip', 'src_mac', 'src_port', 'dest_ip', 'dest_port', 'domain'
];

// These are compared as a whole: one rule's hours inside another's are not looked for.
const TIMES = [ 'start_time', 'stop_time', 'weekdays', 'utc_time' ];

const REFERENCES = { globals: [ 'default' ], rule: [ 'outbound', 'quota_outbound' ], outbound: [ 'udp_outbound', 'member' ] };

const SCHEMES = { 'socks5': 'socks5', 'socks5h': 'socks5', 'socks': 'socks5', 'http': 'http', 'ss': 'shadowsocks' };

// A list is `list` lines, or one option split at blanks.
function values(value) {
	if (value == null)
		return [];

	return (Array.isArray(value) ? value : String(value).split(/\s+/)).filter((one) => one !== '');
}

function isOn(value, preset) {
	return /^(1|on|true|yes|enabled)$/.test(value ?? preset);
}

function decode(text) {
	try {
		return decodeURIComponent(text);
	}
	catch (e) {
		return text;
	}
}

// Base64 of UTF-8, in either alphabet, with or without padding; null if it is none.
function unbase64(text) {
	try {
		const octets = atob(text.replace(/-/g, '+').replace(/_/g, '/').replace(/=+$/, ''));

		return new TextDecoder('utf-8', { fatal: true }).decode(Uint8Array.from(octets, (octet) => octet.charCodeAt(0)));
	}
	catch (e) {
		return null;
	}
}

function splitFirst(text, mark) {
	const at = text.indexOf(mark);

	return (at < 0) ? [ text, null ] : [ text.slice(0, at), text.slice(at + mark.length) ];
}

// user:password, or method:password; a password may hold colons.
function credentials(text) {
	if (text == null)
		return [ null, null ];

	const plain = text.includes(':') ? null : unbase64(text);
	const [ first, second ] = splitFirst(plain ?? text, ':');

	return (plain == null) ? [ decode(first), (second == null) ? null : decode(second) ] : [ first, second ];
}

/*
 * An outbound's options from a link as people pass them on, or { error }.
 * ss:// comes in SIP002's form (userinfo in base64 or in plain) and in the old one (all of it in base64).
 */
function parseLink(link) {
	const parts = /^([a-z0-9]+):\/\/(.*)$/is.exec(link.trim());
	const type = parts ? SCHEMES[parts[1].toLowerCase()] : null;

	if (!type)
		return { error: _('This is no link that begins with socks5://, http:// or ss://.') };

	const [ body, label ] = splitFirst(parts[2], '#');
	let [ rest, query ] = splitFirst(body, '?');

	if (query && /(^|&)plugin=/.test(query))
		return { error: _('This server wants a plugin, which tproxyd does not have.') };

	if (type === 'shadowsocks' && !rest.includes('@'))
		rest = unbase64(rest.replace(/\/$/, '')) ?? rest;

	const at = rest.lastIndexOf('@');
	const [ first, second ] = credentials((at < 0) ? null : rest.slice(0, at));
	const place = /^(?:\[([0-9a-f:.]+)\]|([^[\]:/]+)):(\d{1,5})\/?$/i.exec(rest.slice(at + 1));

	if (!place || +place[3] < 1 || +place[3] > 65535)
		return { error: _('The link does not say server and port.') };

	if (type === 'shadowsocks' && (!first || !second))
		return { error: _('The link does not say cipher and password.') };

	const outbound = { type: type, server: place[1] ?? place[2], port: String(+place[3]) };

	if (type === 'shadowsocks')
		outbound.method = first;
	else if (first)
		outbound.username = first;

	if (second)
		outbound.password = second;

	if (label)
		outbound.label = decode(label);

	return outbound;
}

// A name for a section that is still free: letters of what people call it, a number if need be.
function freeName(wish, taken) {
	const stem = String(wish ?? '').toLowerCase().replace(/[^a-z0-9]+/g, '_').replace(/^_+|_+$/g, '').slice(0, 24) || 'server';
	let name = stem;

	for (let n = 2; taken.includes(name); n++)
		name = '%s_%d'.format(stem, n);

	return name;
}

function quote(text) {
	return "'" + String(text).replace(/'/g, "'\\''") + "'";
}

/*
 * The sections as `uci export` would write them, for `check --config -`; and for each line of it which section and
 * option stand there, so that a message about a line can be shown beside the field.
 */
function exportText(sections) {
	const lines = [ 'package tproxyd', '' ];
	const places = [ null, null ];

	const put = (line, place) => {
		for (const part of line.split('\n')) {
			lines.push(part);
			places.push(place);
		}
	};

	for (const section of sections) {
		const place = { section: section['.name'], type: section['.type'] };

		put('config ' + section['.type'] + (section['.anonymous'] ? '' : ' ' + quote(section['.name'])), place);

		for (const option in section) {
			if (option.startsWith('.') || section[option] == null || section[option] === '')
				continue;

			const many = Array.isArray(section[option]);

			for (const value of many ? section[option] : [ section[option] ])
				put('\t' + (many ? 'list ' : 'option ') + option + ' ' + quote(value), { ...place, option: option });
		}

		put('', null);
	}

	return { text: lines.join('\n') + '\n', places: places };
}

// The daemon's `FILE:LINE: what`, with the place that the line came from. Another file, a set's list, keeps its name.
function complaints(text, places) {
	return String(text ?? '').split('\n').filter((line) => line.trim() !== '').map((line) => {
		const found = /^\/var\/run\/tproxyd\.candidate(?::(\d+))?: (.*)$/.exec(line);

		return { ...(found?.[1] ? places[found[1] - 1] : null), text: found ? found[2] : line };
	});
}

// The section of type globals, if there is one; it may have no name.
function globals(sections) {
	return sections.find((section) => section['.type'] === 'globals');
}


function ipv4(text) {
	const octets = text.split('.');

	if (octets.length !== 4 || !octets.every((octet) => /^\d{1,3}$/.test(octet) && +octet < 256))
		return null;

	return octets.reduce((sum, octet) => sum * 256n + BigInt(octet), 0n);
}

function ipv6(text) {
	const tail = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text);

	if (tail) {
		const low = ipv4(tail[2]);

		if (low == null)
			return null;

		text = tail[1] + (low >> 16n).toString(16) + ':' + (low & 0xffffn).toString(16);
	}

	const halves = text.split('::');

	if (!text.includes(':') || halves.length > 2)
		return null;

	const [ head, foot ] = halves.map((half) => half.split(':').filter((group) => group !== ''));
	const groups = (foot == null) ? head
		: [ ...head, ...Array(Math.max(0, 8 - head.length - foot.length)).fill('0'), ...foot ];

	if (groups.length !== 8 || !groups.every((group) => /^[0-9a-f]{1,4}$/i.test(group)))
		return null;

	return groups.reduce((sum, group) => sum * 65536n + BigInt('0x' + group), 0n);
}

// [ family, first, last ] of an address, prefix or range.
function span(text) {
	const range = /^([^-/]+)-([^-/]+)$/.exec(text);
	const [ base, length ] = range ? [ text, null ] : splitFirst(text, '/');

	for (const [ read, bits ] of [ [ ipv4, 32n ], [ ipv6, 128n ] ]) {
		if (range) {
			const [ first, last ] = [ read(range[1]), read(range[2]) ];

			if (first != null && last != null)
				return [ bits, first, last ];
		}
		else if (read(base) != null && (length == null || /^\d+$/.test(length) && BigInt(length) <= bits)) {
			const free = bits - BigInt(length ?? bits);
			const first = read(base) >> free << free;

			return [ bits, first, first + (1n << free) - 1n ];
		}
	}

	return null;
}

function portSpan(text) {
	const ports = /^(\d+)(?:[-:](\d+))?$/.exec(text);

	return ports ? [ 0n, BigInt(ports[1]), BigInt(ports[2] ?? ports[1]) ] : null;
}

function isWithin(inner, outer) {
	return inner != null && outer != null && inner[0] === outer[0] && inner[1] >= outer[1] && inner[2] <= outer[2];
}

function isBelow(inner, outer) {
	const [ name, above ] = [ inner.replace(/^=/, ''), outer.toLowerCase() ];

	return !outer.startsWith('=') && (name.toLowerCase() === above || name.toLowerCase().endsWith('.' + above));
}

// Whether all that `inner` means is meant by `outer` too.
function includes(kind, outer, inner) {
	if (outer.toLowerCase() === inner.toLowerCase())
		return true;

	switch (kind) {
	case 'src_ip':
	case 'dest_ip':
		return isWithin(span(inner), span(outer));

	case 'src_port':
	case 'dest_port':
		return isWithin(portSpan(inner), portSpan(outer));

	case 'domain':
		return isBelow(inner, outer);

	case 'device':
		return outer.endsWith('*') && inner.startsWith(outer.slice(0, -1));

	default:
		return false;
	}
}

function sameSet(some, others) {
	return some.length === others.length && some.every((one) => others.includes(one));
}

// any and tcpudp stand for their parts, all of them for no condition.
function conditions(rule, kind) {
	let given = values(rule[kind]).flatMap((one) => (one === 'any' || one === 'tcpudp') ? ALL[kind] ?? [ one ] : [ one ]);

	if (ALL[kind] && ALL[kind].every((one) => given.includes(one)))
		given = [];

	return given.map((one) => one.replace(/^!\s*/, '!'));
}

// Whether nothing that `rule` matches is left by `above`. In doubt, no.
function hides(above, rule) {
	const hidesKind = (kind) => {
		const [ outer, inner ] = [ conditions(above, kind), conditions(rule, kind) ];

		if (!outer.length || sameSet(outer, inner))
			return true;

		const plain = inner.filter((one) => !one.startsWith('!'));

		return plain.length > 0 && outer.every((one) => !one.startsWith('!')) &&
			plain.every((one) => outer.some((wider) => includes(kind, wider, one)));
	};

	return KINDS.every(hidesKind) && TIMES.every((kind) => {
		const outer = values(above[kind]);

		return !outer.length || sameSet(outer, values(rule[kind]));
	});
}

// For each rule that can never match the name of the section above that takes everything from it.
function hiddenRules(rules) {
	const hidden = {};
	const live = rules.filter((rule) => isOn(rule.enabled, '1'));

	live.forEach((rule, place) => {
		const above = live.slice(0, place).find((earlier) => hides(earlier, rule));

		if (above)
			hidden[rule['.name']] = above['.name'];
	});

	return hidden;
}

// Sections and options that name this outbound.
function usesOf(sections, name) {
	return sections.flatMap((section) => (REFERENCES[section['.type']] ?? [])
		.filter((option) => values(section[option]).includes(name))
		.map((option) => ({ section: section['.name'], type: section['.type'], option: option, value: section[option] })));
}

// Sections that name this set.
function usesOfSet(sections, name) {
	return sections.filter((section) => [ 'src_ip', 'dest_ip', 'domain', 'allow_ip' ]
		.some((option) => values(section[option]).some((one) => one.replace(/^!\s*/, '') === '@' + name)));
}

/*
 * Whether a value looks right, as one types: true, or what is expected. The daemon has the last word; this only spares
 * it what anyone can see.
 */
const EXPECTED = {
	address: [ (text) => /^@\w+$/.test(text) || span(text) != null, () => _('an address, a prefix, a range or @set') ],
	ports: [ (text) => isWithin(portSpan(text), [ 0n, 0n, 65535n ]), () => _('a port or a range of ports, as 443 or 8000-8100') ],
	mac: [ (text) => /^([0-9a-f]{1,2}[:-]){5}[0-9a-f]{1,2}$/i.test(text), () => _('a MAC address') ],
	domain: [ (text) => /^(@\w+|=?[^\s=@!/:]+)$/.test(text), () => _('a name as example.com, or =example.com for itself alone, or @set') ],
	duration: [ (text) => /^\d+(ms|s|m|h|d)?$/.test(text), () => _('a duration as 300ms, 30s, 5m, 2h or 1d') ],
	size: [ (text) => /^(auto|\d+[KMG]?)$/i.test(text), () => _('a size as 64K, 8M or 1G') ],
	clock: [ (text) => /^([01]?\d|2[0-3]):[0-5]\d(:[0-5]\d)?$/.test(text), () => _('a time of day as 21:30') ],
	mark: [ (text) => /^(0x[0-9a-f]{1,8}|\d+)(\/(0x[0-9a-f]{1,8}|\d+))?$/i.test(text), () => _('a mark and its mask, as 0x10000/0xff0000') ],
	place: [ (text) => /^(\[[0-9a-f:.]+\]|[^\s:]+):\d{1,5}$/i.test(text), () => _('a host and a port, as example.com:443') ]
};

function looksLike(kind, value, mayExclude) {
	const [ test, words ] = EXPECTED[kind];
	const bare = values(value).map((one) => mayExclude ? one.replace(/^!/, '') : one);

	return bare.every((one) => one === '' || test(one)) || _('Expected: %s.').format(words());
}

function bytes(count) {
	const units = [ 'B', 'KB', 'MB', 'GB', 'TB' ];
	let [ number, unit ] = [ +count || 0, 0 ];

	for (; number >= 1000 && unit < units.length - 1; unit++)
		number /= 1000;

	return '%s %s'.format((unit === 0 || number >= 100) ? Math.round(number) : number.toFixed(1), units[unit]);
}

function duration(seconds) {
	const [ days, hours, minutes ] = [ Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60 ];

	if (days > 0)
		return _('%d d %d h').format(days, hours);

	if (hours > 0)
		return _('%d h %d min').format(hours, minutes);

	return (minutes > 0) ? _('%d min').format(minutes) : _('%d s').format(Math.floor(seconds));
}

return baseclass.extend({
	values: values,
	isOn: isOn,
	parseLink: parseLink,
	freeName: freeName,
	exportText: exportText,
	complaints: complaints,
	hiddenRules: hiddenRules,
	globals: globals,
	usesOf: usesOf,
	usesOfSet: usesOfSet,
	looksLike: looksLike,
	bytes: bytes,
	duration: duration
});
