// The greeter in Go: a goroutine for each connection.
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(connection)
	}
}

func serve(connection net.Conn) {
	defer connection.Close()
	reader, writer := bufio.NewReader(connection), bufio.NewWriter(connection)
	writer.WriteString("Welcome!\n")
	for {
		// The replies to all that has arrived leave in one write.
		if reader.Buffered() == 0 && writer.Flush() != nil {
			return
		}
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		name := line[:len(line)-1]
		if name == "exit" {
			writer.Flush()
			return
		}
		writer.WriteString("Hello, ")
		writer.WriteString(name)
		writer.WriteString("!\n")
	}
}
