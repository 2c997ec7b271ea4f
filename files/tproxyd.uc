// The ubus object `tproxyd`, offered by rpcd (rpcd-mod-ucode): asks the command line, which asks the daemon.
// Reading and writing methods are apart, so that an ACL can grant the first without the second.
'use strict';

import { open, popen } from 'fs';

const program = '/usr/sbin/tproxyd';

// A configuration that a front end has not saved yet: here it can be checked at length, too (`check --config`).
const candidate = '/var/run/tproxyd.candidate';

// Within single quotes the shell takes everything literally but the quote itself.
function quoted(text) {
	return "'" + replace(text, /'/g, "'\\''") + "'";
}

// Runs a command whose words are all quoted; what it says is its answer, or the reason why there is none.
function run(words) {
	const pipe = popen(join(' ', map([ program, ...words ], quoted)) + ' 2>&1', 'r');
	if (!pipe)
		return { code: -1, text: 'cannot run ' + program };

	const text = pipe.read('all');

	return { code: pipe.close(), text: trim(text ?? '') };
}

function answer(words) {
	const result = run(words);
	if (result.code != 0)
		return { error: result.text };

	try {
		return json(result.text);
	}
	catch (e) {
		return { error: 'not JSON: ' + result.text };
	}
}

function done(words) {
	const result = run(words);

	return (result.code == 0) ? { message: result.text } : { error: result.text };
}

// [ '--client', '192.168.1.2' ] if the caller gave one, else nothing.
function option(name, value) {
	return (type(value) == 'string' && length(value)) ? [ '--' + name, value ] : [];
}

// [ '--limit', '100' ] if the caller gave one that makes sense, else nothing.
function number(name, value) {
	return (type(value) == 'int' && value >= 0) ? [ '--' + name, '' + value ] : [];
}

return {
	tproxyd: {
		status: {
			call: () => answer([ 'status', '--json' ])
		},

		sessions: {
			args: { client: 'address', outbound: 'name', dst: 'address', sort: 'name', offset: 0, limit: 100 },
			call: (request) => {
				const found = answer([
					'sessions', '--json',
					...option('client', request.args.client),
					...option('outbound', request.args.outbound),
					...option('dst', request.args.dst),
					...option('sort', request.args.sort),
					...number('offset', request.args.offset),
					...number('limit', request.args.limit)
				]);

				// ubus wants a table, the command prints a list
				return (type(found) == 'array') ? { sessions: found } : found;
			}
		},

		clients: {
			call: () => answer([ 'clients', '--json' ])
		},

		explain: {
			args: { proto: 'tcp', src: 'address:port', dst: 'address:port', mac: 'mac', device: 'name', domain: 'name' },
			call: (request) => {
				const flow = [ request.args.proto, request.args.src, request.args.dst ];

				// an empty or missing word would shift the others; a leading dash would be taken for an option
				for (let word in flow)
					if (type(word) != 'string' || !match(word, /^[0-9A-Za-z[]/))
						return { error: 'explain needs proto, src and dst' };

				return done([
					'explain',
					...option('mac', request.args.mac),
					...option('device', request.args.device),
					...option('domain', request.args.domain),
					...flow
				]);
			}
		},

		// What the daemon says of a configuration that is not saved: findings as of `check --json`, or its errors. Not for
		// who may only read: lists that the configuration names are read as root, and their bad lines quoted.
		validate: {
			args: { config: 'text' },
			call: (request) => {
				const file = open(candidate, 'w', 0600);
				if (!file || type(request.args.config) != 'string')
					return { error: 'validate needs a configuration, and room in /var/run' };

				file.write(request.args.config);
				file.close();

				const found = answer([ 'check', '--config-only', '--json', '--config', candidate ]);

				// ubus wants a table, the command prints a list
				return (type(found) == 'array') ? { findings: found } : found;
			}
		},

		reload: {
			call: () => done([ 'reload' ])
		},

		kick: {
			args: { id: 1, client: 'address' },
			call: (request) => {
				if (type(request.args.client) == 'string')
					return done([ 'kick', '--client', request.args.client ]);

				if (type(request.args.id) == 'int')
					return done([ 'kick', '' + request.args.id ]);

				return { error: 'kick needs an id or a client' };
			}
		}
	}
};
