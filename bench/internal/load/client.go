package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

// idMark stands for the call id in the request and is as long as one.
const idMark = "@@@@@@@@@@@@"

// request is a call end of a conversation on the only phone, as the dialer sends it: 290 bytes of query.
const request = "GET /index.php?unique_id=" + idMark + "&customerId=4711&customerCRTId=d336-" + idMark + "-vce-101" +
	"&systemDisposition=CONNECTED&shareablePhonesDialIndex=0&dialledPhone=03000001234" +
	"&phoneList=%7B%22phoneList%22%3A%5B%2203000001234%22%5D%7D&userId=sim_sv7" +
	"&callConnectedTime=2026%2F03%2F06+10%3A15%3A30+%2B0900" +
	" HTTP/1.1\r\nHost: relay\r\n\r\n"

// maxWait is how long an answer may take.
const maxWait = 60 * time.Second

// client sends callbacks over one kept connection, one after the other. It knows as much HTTP as an answer of known length
// needs.
type client struct {
	conn    net.Conn
	in      *bufio.Reader
	request []byte
	ids     []int // where the call id is in the request
	timeout time.Time
}

func dial(addr string) (*client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, in: bufio.NewReader(conn), request: []byte(request)}
	for at := 0; ; at += len(idMark) {
		i := bytes.Index(c.request[at:], []byte(idMark))
		if i < 0 {
			return c, nil
		}
		at += i
		c.ids = append(c.ids, at)
	}
}

// send sends a callback and returns the status of its answer. An error means that the connection is of no more use.
func (c *client) send(callID int64) (status int, err error) {
	for _, at := range c.ids {
		strconv.AppendInt(c.request[at:at], callID, 10)
	}
	// Moving the deadline costs; once in a while is enough.
	if now := time.Now(); c.timeout.Sub(now) < maxWait/2 {
		c.timeout = now.Add(maxWait)
		if err := c.conn.SetDeadline(c.timeout); err != nil {
			return 0, err
		}
	}
	if _, err := c.conn.Write(c.request); err != nil {
		return 0, err
	}
	return c.answer()
}

func (c *client) answer() (status int, err error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, fmt.Errorf("%q is no answer", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, fmt.Errorf("%q is no answer", line)
	}
	length := -1
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
	}
	if length < 0 {
		return 0, errors.New("the answer has no Content-Length")
	}
	if _, err := c.in.Discard(length); err != nil {
		return 0, err
	}
	if status == http.StatusOK || status == http.StatusServiceUnavailable {
		return status, nil
	}
	return status, fmt.Errorf("a callback was answered %d", status)
}
