package up

import (
	"fmt"
	"net"
	"strings"
	"time"

	"callrelay/services/upstream"
)

// banner is what a person needs next. The call id is that of the moment, so that the line works again after a restart.
func banner(o Options, c configs, httpAddr string, now time.Time) string {
	base := "http://" + reachable(httpAddr)
	if c.ingress.PathSecret.Reveal() != "" {
		base += "/$AMEYO_PATH_SECRET"
	}
	how := "one process"
	if o.Split {
		how = "four processes"
	}
	call := now.Unix()
	var b strings.Builder
	line := func(what, text string) { fmt.Fprintf(&b, "  %-22s%s\n", what, text) }
	if o.late == nil || len(*o.late) == 0 {
		fmt.Fprintf(&b, "\ncallrelay is ready: %s, data in %s\n\n", how, o.DataDir)
	} else {
		fmt.Fprintf(&b, "\ncallrelay has started, but %s did not get ready (the warnings above say why): %s, data in %s\n"+
			"Callbacks go to the spool until that is over; nothing has to be restarted.\n\n", strings.Join(*o.late, ", "), how, o.DataDir)
	}
	line("send callbacks to", base+"/index.php and "+base+"/call_start.php")
	line("for example", fmt.Sprintf(`curl "%s/index.php?unique_id=%d&customerId=1001&customerCRTId=d336-%d-vce-1`+
		`&systemDisposition=CONNECTED&userId=agent1&dialledPhone=03000000001&phoneList=%%7B%%22phoneList%%22:%%5B%%2203000000001%%22%%5D%%7D"`, base, call, call))
	line("what became of it", fmt.Sprintf("%s call %d", o.Program, call))
	if o.SimAddr != "" {
		line("what TopS.II holds", fmt.Sprintf("curl http://%s/sim/held", o.SimAddr))
		if c.upstream.Kommo.BaseURL == simKommo(o) {
			line("connect a Kommo", fmt.Sprintf("echo %s | %s integrations connect acme.kommo.com", simToken, o.Program))
			line("what Kommo holds", fmt.Sprintf("curl %s/sim/view", simKommo(o)))
		}
	}
	line("stop", "Ctrl-C")
	fmt.Fprintln(&b)
	target := baseURL(c.upstream)
	switch {
	case !bool(c.upstream.RealSend):
		fmt.Fprintln(&b, "  SENDING IS DISABLED: callbacks are taken and decided, but nothing is sent to TopS.II, now or later.")
		fmt.Fprintln(&b, "  ENABLE_REAL_SEND=true sends (or up --sim, to a simulator).")
	case o.SimAddr != "" && target != "http://"+o.SimAddr:
		fmt.Fprintf(&b, "  ATTENTION: the environment sends deliveries to %s (%s), NOT to the simulator.\n", target, c.upstream.Environment)
	default:
		fmt.Fprintf(&b, "  Deliveries go to %s (%s).\n", target, c.upstream.Environment)
	}
	fmt.Fprintln(&b)
	return b.String()
}

func baseURL(c upstream.Config) string {
	if c.Environment == "PROD" {
		return c.ProdBaseURL
	}
	return c.TestBaseURL
}

// reachable is the address as a client on this machine dials it.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
