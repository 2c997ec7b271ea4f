'use strict';
'require baseclass';
'require uci';
'require tproxyd.model as model';

/*
 * The usual set-ups, as plain UCI that one can go on editing. What a preset added carries `_preset`, so that choosing
 * another takes it away again; names that begin with "_" are left alone by the daemon.
 */

const PORT = '2333';

const PRESETS = {
	everything: {
		title: () => _('Everything that way'),
		asks: [],
		build: (way) => ({ default: way, sections: [] })
	},
	country: {
		title: () => _('A country direct, the rest that way'),
		asks: [ 'list' ],
		build: (way, given) => ({
			default: way,
			sections: [
				[ 'set', 'country', { type: 'net', label: _('Networks of the country'), ...listSource(given.list) } ],
				[ 'rule', null, { name: _('the country, direct'), dest_ip: [ '@country' ], outbound: 'direct' } ]
			]
		})
	},
	names: {
		title: () => _('Only these names that way'),
		asks: [ 'names' ],
		build: (way, given) => ({
			default: 'direct',
			sections: [ [ 'rule', null, { name: _('these names'), domain: model.values(given.names), outbound: way } ] ]
		})
	},
	devices: {
		title: () => _('Only these devices that way'),
		asks: [ 'devices' ],
		build: (way, given) => ({
			default: 'direct',
			sections: [ [ 'rule', null, { name: _('these devices'), src_mac: given.devices, outbound: way } ] ]
		})
	},
	night: {
		title: () => _('These devices blocked at night'),
		asks: [ 'devices', 'hours' ],
		build: (way, given) => ({
			default: way,
			sections: [ [ 'rule', null, {
				name: _('blocked at night'), src_mac: given.devices, start_time: given.start, stop_time: given.stop, outbound: 'reject'
			} ] ]
		})
	}
};

// An address to fetch it from, a file, or nothing yet.
function listSource(source) {
	if (/^https?:\/\//.test(source))
		return { url: source };

	return source.startsWith('/') ? { loadfile: [ source ] } : { entry: model.values(source) };
}

// What is missing for this preset, in words; null if nothing is.
function lacks(name, given) {
	const { asks } = PRESETS[name];

	if (!given.networks.length)
		return _('Choose at least one network.');

	if (asks.includes('list') && !given.list)
		return _('Say where the list of the country’s networks is: an address, a file on the router, or the networks themselves.');

	if (asks.includes('names') && !model.values(given.names).length)
		return _('Write at least one name, as example.com.');

	if (asks.includes('devices') && !given.devices.length)
		return _('Choose at least one device.');

	if (asks.includes('hours') && !(given.start && given.stop))
		return _('Say from when until when.');

	if (given.outbound.error)
		return given.outbound.error;

	if (given.outbound.type !== 'direct' && !(given.outbound.server && given.outbound.port))
		return _('Say server and port of the proxy.');

	return null;
}

function set(sid, options) {
	for (const option in options)
		uci.set('tproxyd', sid, option, options[option]);
}

// Its id, made if there is none yet.
function globals() {
	return model.globals(uci.sections('tproxyd'))?.['.name'] ?? uci.add('tproxyd', 'globals', 'globals');
}

/*
 * Writes the preset: `given` has networks, outbound { type, server, port, … }, and what the preset asks for. Sections of
 * one's own stay; the preset's rules come behind them.
 */
function apply(name, given) {
	for (const section of uci.sections('tproxyd').filter((one) => one._preset))
		uci.remove('tproxyd', section['.name']);

	const taken = () => uci.sections('tproxyd').map((section) => section['.name']);
	const listener = uci.sections('tproxyd', 'listener').find((one) => !one.mode || one.mode === 'tproxy')?.['.name'] ??
		uci.add('tproxyd', 'listener', model.freeName('lan', taken()));

	set(listener, { enabled: '1', mode: 'tproxy', port: uci.get('tproxyd', listener, 'port') ?? PORT, network: given.networks });

	let way = 'direct';

	if (given.outbound.type !== 'direct') {
		way = uci.add('tproxyd', 'outbound', model.freeName('proxy', taken()));
		set(way, { ...given.outbound, _preset: '1' });
	}

	const made = PRESETS[name].build(way, given);

	for (const [ type, wish, options ] of made.sections)
		set(uci.add('tproxyd', type, wish ? model.freeName(wish, taken()) : null), { ...options, _preset: '1' });

	set(globals(), { default: made.default, enabled: '1' });
}

return baseclass.extend({
	PRESETS: PRESETS,
	lacks: lacks,
	apply: apply,
	globals: globals
});
