import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.core.DefaultKafkaProducerFactory;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.KafkaMessageListenerContainer;
import org.springframework.kafka.requestreply.ReplyingKafkaTemplate;
import org.springframework.kafka.requestreply.RequestReplyFuture;
import org.springframework.kafka.support.KafkaHeaders;
import org.springframework.kafka.support.TopicPartitionOffset;

/**
 * Asks with Spring Kafka's own request/reply template, all questions at once, and prints what came back.
 *
 * <p>Arguments: brokers, topic of queries, topic of replies, a partition of these or -1 for all of them. Each line of
 * stdin is a query; a line of stdout is its reply's partition, its error code or "-", and its value, in that order.
 */
public final class Asker {
  static final class ErrorReply extends RuntimeException {
    final ConsumerRecord<?, ?> reply;

    ErrorReply(ConsumerRecord<?, ?> reply) {
      super(code(reply));
      this.reply = reply;
    }
  }

  public static void main(String[] arguments) throws Exception {
    String brokers = arguments[0], queries = arguments[1], replies = arguments[2];
    int partition = Integer.parseInt(arguments[3]);
    ContainerProperties where =
        partition < 0
            ? new ContainerProperties(replies)
            : new ContainerProperties(new TopicPartitionOffset(replies, partition));
    where.setGroupId(UUID.randomUUID().toString());
    KafkaMessageListenerContainer<String, String> container =
        new KafkaMessageListenerContainer<>(
            new DefaultKafkaConsumerFactory<>(
                Map.of("bootstrap.servers", brokers, "auto.offset.reset", "latest"),
                new StringDeserializer(),
                new StringDeserializer()),
            where);
    DefaultKafkaProducerFactory<String, String> producers =
        new DefaultKafkaProducerFactory<>(
            Map.of("bootstrap.servers", brokers), new StringSerializer(), new StringSerializer());
    ReplyingKafkaTemplate<String, String, String> template = new ReplyingKafkaTemplate<>(producers, container);
    // Others have their replies on the same topic.
    template.setSharedReplyTopic(true);
    template.setDefaultReplyTimeout(Duration.ofSeconds(60));
    template.setReplyErrorChecker(reply -> code(reply).equals("-") ? null : new ErrorReply(reply));
    template.afterPropertiesSet();
    template.start();
    if (!template.waitForAssignment(Duration.ofSeconds(60))) {
      throw new IllegalStateException("no partition of " + replies + " was assigned");
    }
    List<RequestReplyFuture<String, String, String>> asked = new ArrayList<>();
    for (String query : new String(System.in.readAllBytes(), StandardCharsets.UTF_8).strip().split("\n")) {
      ProducerRecord<String, String> request = new ProducerRecord<>(queries, "spring-" + asked.size(), query);
      if (partition < 0) {
        request.headers().add(KafkaHeaders.REPLY_TOPIC, replies.getBytes(StandardCharsets.UTF_8));
      }
      asked.add(template.sendAndReceive(request));
    }
    for (RequestReplyFuture<String, String, String> future : asked) {
      try {
        show(future.get());
      } catch (ExecutionException failed) {
        if (!(failed.getCause() instanceof ErrorReply error)) {
          throw failed;
        }
        show(error.reply);
      }
    }
    template.destroy();
    producers.destroy();
    System.exit(0); // Its scheduler's thread would keep the process.
  }

  private static String code(ConsumerRecord<?, ?> reply) {
    Header code = reply.headers().lastHeader("headrace.error");
    return code == null ? "-" : new String(code.value(), StandardCharsets.UTF_8);
  }

  private static void show(ConsumerRecord<?, ?> reply) {
    System.out.println(reply.partition() + " " + code(reply) + " " + reply.value());
  }
}
