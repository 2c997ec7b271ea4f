'use strict';
'require view';
'require tproxyd.daemon as daemon';
'require tproxyd.parts as parts';

return view.extend({
	handleSave: null,
	handleSaveApply: null,
	handleReset: null,

	load: () => Promise.resolve(),

	render() {
		const readonly = !L.hasViewPermission();
		const found = E('div', { 'role': 'status', 'aria-live': 'polite', 'id': 'tproxyd-findings' }, [ '' ]);
		const log = E('pre', { 'class': 'tproxyd-pre', 'tabindex': 0, 'aria-label': _('Log') }, [ '' ]);

		const check = (probe) => {
			parts.replace(found, E('em', {}, [ _('Looking; this can take some seconds…') ]));

			return daemon.check(probe).then((findings) => parts.replace(found, parts.findingList(findings)));
		};

		const showLog = () => daemon.log().then((result) => parts.replace(log,
			(result.code === 0) ? result.text || _('The log says nothing of it.') : result.error || result.text || _('The log cannot be read.')));

		const restart = () => daemon.restart().then((result) => {
			if (result.code !== 0)
				parts.notify(result.error || result.text || _('failed'), 'danger');
		});

		check(false);
		showLog();

		return E('div', {}, [
			parts.style(),
			parts.text('h2', _('Check & Log')),
			parts.text('p', _('What will not work on this router, and the command that mends it.')),
			E('div', { 'class': 'tproxyd-fields' }, [
				parts.button(_('Check again'), 'action', () => check(false)),
				parts.button(_('Send a test connection'), 'action', () => check(true), { 'disabled': readonly ? '' : null }),
				parts.button(_('Restart the daemon'), 'negative', restart, { 'disabled': readonly ? '' : null })
			]),
			found,
			parts.text('h3', _('Log')),
			E('div', { 'class': 'tproxyd-fields' }, [ parts.button(_('Read again'), 'action', showLog) ]),
			log
		]);
	}
});
